"""Heads: from a fused pair to scores."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers import ACTIVATIONS, KERNEL_INIT, LayerNorm, as_dtype, choose

# form: (hidden units per input unit, norm before the activation, epsilon)
FORMS = {"meter": (1, True, 1e-5), "lxmert": (2, False, 1e-12)}


class VQAHead(nn.Module):
    """Scores of `num_answers` answers from the pooled pair, in the two published forms.

    "meter" (Dou et al. 2022): dense, norm, GELU, dense; as wide inside as its input, which is two
    poolers. "lxmert" (Tan & Bansal 2019): dense to twice the input, GELU, norm, dense. Logits are
    float32 whatever `dtype` is.
    """

    num_answers: int
    form: str = "meter"
    hidden_dim: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pooled: Float[Array, "b e"], *, train: bool = False) -> Float[Array, "b a"]:
        times, norm_first, epsilon = choose("form", self.form, FORMS)
        dtypes = dict(dtype=as_dtype(self.dtype), param_dtype=as_dtype(self.param_dtype))
        kinds = dict(kernel_init=KERNEL_INIT, **dtypes)
        hidden = self.hidden_dim or times * pooled.shape[-1]
        x = nn.Dense(hidden, name="fc1", **kinds)(pooled)
        norm = LayerNorm(epsilon=epsilon, name="norm", **dtypes)
        gelu = ACTIVATIONS["gelu"]
        x = gelu(norm(x)) if norm_first else norm(gelu(x))
        return nn.Dense(self.num_answers, name="fc2", **kinds)(x).astype(jnp.float32)
