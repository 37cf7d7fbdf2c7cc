"""The flash-attention kernel for TPUs that JAX ships ("splash"), for masks of keys and no bias.

`jax.experimental.pallas.ops.tpu.splash_attention` wants lengths that its blocks divide and its own
form of masks. Here queries and keys are padded, and a masked or padded key has another segment id
than all queries. XLA cannot split a kernel over a mesh, so each device calls it for its own
examples and heads, over the mesh axes that the logical rules give to "batch" and "heads".
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.layers.chunked_attention import ATTENTION_OUTPUT, even_chunks

LONGEST_BLOCK = 512


def splash_attention(
    query: Float[Array, "b t h k"],
    key: Float[Array, "b s h k"],
    value: Float[Array, "b s h k"],
    mask: Bool[Array, "#b 1 1 s"] | None = None,
    *,
    interpret: bool = False,
) -> Float[Array, "b t h k"]:
    """`softmax(query key^T / sqrt(k)) value` for keys whose mask is true, on a TPU.

    Examples that may use no key give zeros. `interpret` runs the kernel as JAX operations, on any
    device and slowly. No forward-mode derivatives.
    """
    allowed = jnp.ones((query.shape[0], key.shape[1]), bool)
    if mask is not None:
        allowed = jnp.broadcast_to(mask[:, 0, 0], allowed.shape)
    local = functools.partial(_kernel, interpret=interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if not (mesh.empty or mesh.manual_axes):
        batch, heads = _axes("batch", query.shape[0]), _axes("heads", query.shape[2])
        split = PartitionSpec(batch or None, None, heads or None)
        local = jax.shard_map(
            local,
            in_specs=(split, split, split, PartitionSpec(batch or None)),
            out_specs=split,
            check_vma=False,
        )
    return local(query, key, value, allowed)


def check_splash(mask: Bool[Array, "#b #h #t s"] | None, bias: Array | None, platform: str) -> None:
    """Raises for what the kernel does not take."""
    found = None
    if platform != "tpu":
        found = f"runs on TPUs, not on {platform!r}"
    elif bias is not None:
        found = "takes no bias of the logits, and this layer has one"
    elif mask is not None and mask.shape[1:3] != (1, 1):
        found = f"takes masks of keys [b 1 1 s], and this layer's is {list(mask.shape)}"
    if found:
        raise MmflaxError(f'attention_impl "splash" {found}; use "auto" or "chunked".')


def _axes(name: str, size: int) -> tuple[str, ...]:
    """The mesh axes that split a logical axis of `size`; none where they do not divide it."""
    mesh = jax.sharding.get_abstract_mesh()
    (axes,) = nn.logical_to_mesh_axes((name,)) or (None,)
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()


def _kernel(query: Array, key: Array, value: Array, allowed: Array, *, interpret: bool) -> Array:
    """One device's examples and heads."""
    # Not at the top: importing it takes a second, and most machines have no TPU.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    length, heads = query.shape[1:3]
    rows = even_chunks(length, LONGEST_BLOCK)
    keys = even_chunks(key.shape[1], LONGEST_BLOCK)
    query, key, value = (
        _padded(x, block).swapaxes(1, 2) for x, block in ((query, rows), (key, keys), (value, keys))
    )
    shape = query.shape[2], key.shape[2]
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask(shape)] * heads),
        block_sizes=splash.BlockSizes(
            block_q=rows, block_kv=keys,
            block_q_dkv=rows, block_kv_dkv=keys, block_kv_dkv_compute=keys,
            block_q_dq=rows, block_kv_dq=keys,
        ),
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=ATTENTION_OUTPUT,
        interpret=interpret,
    )  # fmt: skip
    segments = splash.SegmentIds(
        q=jnp.ones((len(query), shape[0]), jnp.int32),
        kv=_padded(allowed.astype(jnp.int32), keys),
    )
    scaled = query * jnp.asarray(query.shape[-1] ** -0.5, query.dtype)
    mixed = jax.vmap(kernel)(scaled, key, value, segments).swapaxes(1, 2)[:, :length]
    # Where no key may be used the kernel gives the mean of all.
    return jnp.where(allowed.any(axis=1)[:, None, None, None], mixed, jnp.zeros_like(mixed))


def _padded(x: Array, block: int) -> Array:
    """`x` with zeros at the end of axis 1, to a multiple of `block`."""
    padding = [(0, 0)] * x.ndim
    padding[1] = (0, -x.shape[1] % block)
    return jnp.pad(x, padding)
