"""A stack of equal layers, as a loop or as one scanned layer, with rematerialization.

A loop keeps parameters under `layers_0 … layers_{n-1}`; a scan keeps them under `layers` with a
leading depth axis and compiles one layer only. `stack_layers` and `unstack_layers` convert.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from mmflax.errors import MmflaxError
from mmflax.models.layers.blocks import lookup
from mmflax.models.layers.chunked_attention import ATTENTION_OUTPUT
from mmflax.models.layers.config import StackConfig

# What enters a layer, by the name that policies know it.
LAYER_INPUT = "layer_input"
# What of each layer is kept for the backward pass, which computes the rest again:
# - "none": everything the derivatives read; nothing is computed again.
# - "dots": its input and the results of dense layers.
# - "block": its input and what its attentions give. Attention in chunks, or by the splash kernel,
#   is then not run again (its rows' numbers are kept too); other attention computes its weights.
# - "offload": as "block", in the host's memory (`pinned_host`) until the backward pass copies it
#   back. On a CPU the host's memory is the device's, so this is "block" there.
# - "full": its input only.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "block": jax.checkpoint_policies.save_only_these_names(ATTENTION_OUTPUT),
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[LAYER_INPUT, ATTENTION_OUTPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}
# Sections of a config that hold a stack, by the module's name.
_PARTS = ("image_encoder", "text_encoder", "fusion")


class Stack(nn.Module):
    """`depth` layers in sequence: `carry = layer(carry, *inputs, drop_path=rate, train=train)`.

    `layer(name=…)` makes one; a tuple of `depth` makers gives layers that differ, which no scan
    takes. Drop-path grows linearly from `drop_path_start` at the first layer to `drop_path_rate` at
    the last. Scan and loop differ only in the random numbers dropout draws.

    `each`, a tree of arrays with a leading depth axis, gives every layer a part of its own: layer i
    is called with `each=each[i]` too. With `layers` above 0 the result is a pair: the last carry,
    and a tuple of what the last `layers` layers gave, the last one last. With a mutable collection
    "hidden_states" what enters and what every layer gives is sown there as `carry`.
    """

    layer: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...]
    config: StackConfig
    drop_path_start: float = 0.0

    @nn.compact
    def __call__(
        self, carry: Any, *inputs: Any, each: Any = None, layers: int = 0, train: bool
    ) -> Any:
        config, depth = self.config, self.config.depth
        policy = lookup("remat", config.remat, REMAT_POLICIES)
        if layers > depth:
            raise MmflaxError(
                f"the outputs of the last {layers} layers were requested, but there are "
                f"{depth}; raise this depth, or lower the depth of what reads them."
            )

        sown = sows_states(self)
        wanted = depth if sown else layers

        def body(layer: Any, carry: Any, own: tuple[Any, Any]) -> tuple[Any, Any]:
            rate, part = own
            more = {} if part is None else {"each": part}
            carry = named_input(carry)
            carry = layer(carry, *inputs, drop_path=rate, train=train, **more)
            return carry, carry if wanted else None

        if policy is not None:
            # A scan already keeps XLA from merging the recomputation with the first computation.
            body = nn.remat(body, policy=policy, prevent_cse=not config.scan_layers)
        rates = None
        if train and config.drop_path_rate > 0.0:
            ends = self.drop_path_start, config.drop_path_rate
            rates = jnp.linspace(*ends, depth, dtype=jnp.float32)
        entered = carry
        makers = self.layer if isinstance(self.layer, tuple) else (self.layer,) * depth
        if config.scan_layers and isinstance(self.layer, tuple):
            part = next((name for name in self.path if name in _PARTS), "text_encoder")
            raise MmflaxError(
                "These layers differ, so no scan runs them; give "
                f"--config.model.{part}.scan_layers=False."
            )
        if config.scan_layers and depth:
            scan = nn.scan(
                body,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=depth,
            )
            carry, scanned = scan(makers[0](name="layers"), carry, (rates, each))
            kept = range(depth - wanted, depth)
            outputs = [jax.tree.map(lambda leaf, i=i: leaf[i], scanned) for i in kept]
        else:
            outputs = []
            for i in range(depth):
                own = jax.tree.map(lambda leaf, i=i: leaf[i], (rates, each))
                carry, output = body(makers[i](name=f"layers_{i}"), carry, own)
                outputs.append(output)
        if sown:
            sow_states(self, (entered, *outputs))
        return (carry, tuple(outputs[-layers:])) if layers else carry


def named_input(carry: Any) -> Any:
    """`carry`, any tree, under the name that `REMAT_POLICIES` know what enters a layer by."""
    return jax.tree.map(lambda leaf: checkpoint_name(leaf, LAYER_INPUT), carry)


def sows_states(module: nn.Module) -> bool:
    """Whether a call made "hidden_states" mutable."""
    return module.is_mutable_collection("hidden_states") and not module.is_initializing()


def sow_states(module: nn.Module, states: Sequence[Any]) -> None:
    """Sows what enters the layers of `module` and each one's output as `carry`, if requested."""
    if sows_states(module):
        module.sow("hidden_states", "carry", tuple(states), reduce_fn=lambda _, new: new)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The scanned form of a loop's parameters, at any depth of the tree; the rest is unchanged."""
    tree = {name: _descend(child, stack_layers) for name, child in params.items()}
    loop = {name for name in tree if re.fullmatch(r"layers_\d+", name)}
    if not loop:
        return tree
    layers = [tree.pop(f"layers_{i}") for i in range(len(loop))]
    tree["layers"] = jax.tree.map(lambda *leaves: _numpy_or_jax(leaves[0]).stack(leaves), *layers)
    return tree


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The loop form of scanned parameters, at any depth of the tree; the rest is unchanged."""
    tree = {name: _descend(child, unstack_layers) for name, child in params.items()}
    if "layers" not in tree:
        return tree
    layers = tree.pop("layers")
    for i in range(len(jax.tree.leaves(layers)[0])):
        tree[f"layers_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
    return tree


def _descend(child: Any, convert: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Any:
    return convert(child) if isinstance(child, Mapping) else child


def _numpy_or_jax(leaf: Any) -> Any:
    return np if isinstance(leaf, np.ndarray) else jnp
