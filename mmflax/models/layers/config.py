"""Settings that encoders, fusions and decoders pass to their layers as one value.

Builders take them flat: `build(num_heads=4, remat="full")` (`registry.flat`).
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


def as_dtype(dtype: Any) -> Any:
    """A dtype from its name, as configs write it; None (follow the inputs) stays None."""
    return None if dtype is None else jnp.dtype(dtype)


class Typed(nn.Module, kw_only=True):
    """Base of modules that compute in `dtype` (None: that of their inputs) and keep parameters in
    `param_dtype`."""

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @property
    def dtypes(self) -> dict[str, Any]:
        """Both, as layers take them."""
        return dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))


@dataclasses.dataclass(frozen=True)
class LayerConfig:
    """What the transformer layers of a model share.

    Attributes:
      mlp_dim: width inside the MLP; None is 4 * width.
      norm_style: "pre" (ViT) normalizes what enters a branch, "post" (BERT) the sum after it.
      activation: of the MLP, see `blocks.ACTIVATIONS`.
      epsilon: of the layer norms.
      attention_dropout_rate: of the attention weights; `dropout_rate` is of each branch.
      attention_impl: see `attention.attend`.
      qk_init: "shared" starts the query and key kernels equal (after mimetic initialization,
        Trockman & Kolter 2023, sec. 4: W_q W_k^T near the identity), which helps small models
        trained from scratch; "independent" draws both.
      qk_norm: queries and keys pass a layer norm over each head's width (Dehghani et al. 2023,
        ViT-22B, sec. 2), so that attention logits cannot grow without bound.
      layer_scale: where a learned scale of every channel of each residual branch starts (Touvron
        et al. 2021, CaiT, eq. 4; 0.1 for few layers, 1e-5 for dozens); None has no such scale.
    """

    num_heads: int
    mlp_dim: int | None = None
    norm_style: str = "pre"
    activation: str = "gelu"
    epsilon: float = 1e-6
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    qkv_bias: bool = True
    attention_impl: str = "auto"
    qk_init: str = "independent"
    qk_norm: bool = False
    layer_scale: float | None = None
    dtype: Any = None
    param_dtype: Any = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", as_dtype(self.dtype))
        object.__setattr__(self, "param_dtype", as_dtype(self.param_dtype))

    @property
    def dtypes(self) -> dict[str, Any]:
        """The dtypes, as layers take them."""
        return dict(dtype=self.dtype, param_dtype=self.param_dtype)

    @property
    def norm(self) -> dict[str, Any]:
        """Fields of a `LayerNorm`."""
        return dict(epsilon=self.epsilon, **self.dtypes)


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """How layers are stacked.

    Attributes:
      drop_path_rate: stochastic depth of the last layer; it grows linearly.
      remat: what the backward pass computes again, from nothing to everything but the inputs of
        layers: "none", "dots", "block", "full"; "offload" is "block" with what is kept in the
        host's memory. See `stack.REMAT_POLICIES`.
      scan_layers: one scanned layer instead of a loop: compiles faster, other parameter paths.
    """

    depth: int
    drop_path_rate: float = 0.0
    remat: str = "none"
    scan_layers: bool = False


class Layered(nn.Module):
    """Base of modules whose field `layer` is a `LayerConfig`."""

    @property
    def dtypes(self) -> dict[str, Any]:
        """The dtypes, as layers take them."""
        return self.layer.dtypes
