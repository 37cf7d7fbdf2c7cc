"""Low-rank adaptation of dense kernels (LoRA; Hu et al. 2021, arXiv:2106.09685, eq. 3).

A frozen kernel W gets two thin ones beside it, and its layer gives x W + s (x A) B. A is drawn
uniformly from ±1/sqrt(inputs), as the authors' code and peft do (the paper says Gaussian), and B is
zero, so that the adapted model begins as the one it adapts. s is alpha / rank, or alpha /
sqrt(rank) (rsLoRA; Kalajdzievski 2023, arXiv:2312.03732). No gradient of W is ever needed, and
`merged` gives the one kernel that computes the same.

The adapters of a module's `kernel` lie beside it as `lora_a` [..., *inputs, r] and `lora_b`
[..., r, *outputs]; a depth axis of scanned layers leads in all three.
"""

from __future__ import annotations

import contextlib
import math
import re
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError

A, B = "lora_a", "lora_b"


class Adapter(NamedTuple):
    """The shapes of one kernel's adapters.

    Attributes:
      kernel: its path.
      stack: leading axes of the kernel that number layers.
      inputs: the axes that the product sums over.
      outputs: the rest.
      dtype: of the kernel's adapters: the kernel's, but float32 where that is half precision.
    """

    kernel: str
    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    dtype: Any

    @property
    def names(self) -> tuple[str, str]:
        """Paths of A and B."""
        module = self.kernel.removesuffix("kernel")
        return module + A, module + B

    def shapes(self, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of A and B."""
        return (*self.stack, *self.inputs, rank), (*self.stack, rank, *self.outputs)

    def draw(self, key: jax.Array, rank: int) -> dict[str, jax.Array]:
        """A and B by path, as training begins; the draw depends on the key and the path alone."""
        a, b = self.shapes(rank)
        bound = 1.0 / math.sqrt(math.prod(self.inputs))
        key = jax.random.fold_in(key, zlib.crc32(self.kernel.encode()))
        drawn = jax.random.uniform(key, a, self.dtype, minval=-bound, maxval=bound)
        return dict(zip(self.names, (drawn, jnp.zeros(b, self.dtype)), strict=True))


def find(
    targets: Sequence[str],
    shapes: Mapping[str, Any],
    modules: Mapping[str, nn.Module],
    kept: Collection[str] = (),
) -> dict[str, Adapter]:
    """The adapters of the kernels that regexes name, by the kernels' paths.

    Args:
      targets: path regexes.
      shapes: path -> shape and dtype of every parameter.
      modules: path -> the module there, its fields resolved.
      kept: paths that get none, whatever matches them.

    Raises:
      MmflaxError: a regex that names no kernel, or a parameter that is no dense layer's kernel.
    """
    found = {}
    for pattern in targets:
        matched = [path for path in shapes if re.search(pattern, path)]
        chosen = [path for path in matched if path not in kept]
        if not chosen:
            why = (
                f"only {matched[0]!r} and others that train whole or are in optim.freeze"
                if matched
                else f"no parameter (paths look like {next(iter(shapes), '')!r})"
            )
            raise MmflaxError(f"lora.targets has {pattern!r}, which matches {why}; correct it.")
        for path in chosen:
            found[path] = _adapter(path, shapes[path], modules, pattern)
    return found


def _adapter(path: str, kernel: Any, modules: Mapping[str, nn.Module], pattern: str) -> Adapter:
    where, _, leaf = path.rpartition("/")
    module = modules.get(where)
    if leaf != "kernel" or not _is_dense(module):
        kind = "" if module is None else f" of a {type(module).__name__}"
        raise MmflaxError(
            f"lora.targets has {pattern!r}, which matches {path} {list(kernel.shape)}{kind}; only "
            "kernels of dense layers can be adapted: end the regex in /kernel$ and name those."
        )
    sums, gives = (len(axes) for axes in _axes(module))
    stack = kernel.ndim - sums - gives
    half = jnp.finfo(kernel.dtype).bits < 32
    return Adapter(
        path,
        kernel.shape[:stack],
        kernel.shape[stack : stack + sums],
        kernel.shape[stack + sums :],
        jnp.dtype(jnp.float32) if half else kernel.dtype,
    )


def _is_dense(module: Any) -> bool:
    return isinstance(module, nn.Dense) or (
        isinstance(module, nn.DenseGeneral) and not module.batch_dims
    )


def _axes(module: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The input's axes that a dense layer sums over, and the sizes of its outputs."""
    if isinstance(module, nn.Dense):
        return (-1,), (module.features,)
    axis, features = module.axis, module.features
    return (
        (axis,) if isinstance(axis, int) else tuple(axis),
        (features,) if isinstance(features, int) else tuple(features),
    )


def adapted(scale: float, dropout: float = 0.0) -> contextlib.AbstractContextManager[Any]:
    """A context in which dense layers add what the adapters beside their kernels give.

    Args:
      scale: s.
      dropout: share of the adapters' inputs that is dropped, from the random stream `dropout`.
    """

    def add(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__" or not _is_dense(module):
            return output
        if not module.has_variable("params", A):
            return output
        a, b = (jnp.asarray(module.get_variable("params", name), output.dtype) for name in (A, B))
        x = jnp.asarray(args[0] if args else kwargs["inputs"], output.dtype)
        if dropout:
            kept = jax.random.bernoulli(module.make_rng("dropout"), 1.0 - dropout, x.shape)
            x = jnp.where(kept, x / (1.0 - dropout), jnp.zeros_like(x))
        axes = tuple(axis % x.ndim for axis in _axes(module)[0])
        thin = jax.lax.dot_general(x, a, ((axes, tuple(range(len(axes)))), ((), ())))
        wide = jax.lax.dot_general(thin, b, (((thin.ndim - 1,), (0,)), ((), ())))
        return output + scale * wide

    return nn.intercept_methods(add)


def merged(
    adapter: Adapter, kernel: Float[Array, "..."], a: Array, b: Array, scale: float
) -> Float[Array, "..."]:
    """W + s A B in the kernel's shape and type; the product is in float32."""
    layers, rank = math.prod(adapter.stack), a.shape[-1]
    product = jnp.einsum(
        "lir,lro->lio",
        jnp.asarray(a, jnp.float32).reshape(layers, math.prod(adapter.inputs), rank),
        jnp.asarray(b, jnp.float32).reshape(layers, rank, math.prod(adapter.outputs)),
        precision=jax.lax.Precision.HIGHEST,
    )
    whole = jnp.asarray(kernel, jnp.float32) + scale * product.reshape(kernel.shape)
    return whole.astype(kernel.dtype)
