"""Layers of convolutional encoders."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.models.layers.config import Typed

# He et al. 2015 (arXiv:1502.01852): keeps the size of what comes back through a ReLU.
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def patch_embedding(
    width: int, patch_size: int, dtypes: Mapping[str, Any], *, use_bias: bool = True
) -> nn.Conv:
    """Every patch of patch_size x patch_size pixels to one vector."""
    patch = (patch_size, patch_size)
    return nn.Conv(
        width,
        patch,
        strides=patch,
        padding="VALID",
        use_bias=use_bias,
        kernel_init=KERNEL_INIT,
        name="patch_embedding",
        **dtypes,
    )


def max_pool(
    x: Float[Array, "b h w c"], size: int, stride: int, padding: int = 0
) -> Float[Array, "b u v c"]:
    """The largest of every size x size pixels, `padding` rows of nothing on every side."""
    return nn.max_pool(x, (size, size), (stride, stride), ((padding, padding),) * 2)


def tokens(x: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    """The pixels of a map, row by row."""
    return x.reshape(x.shape[0], -1, x.shape[-1])


class FrozenBatchNorm(Typed):
    """Batch normalization (Ioffe & Szegedy 2015) by the statistics of a checkpoint.

    They are used in training too and never change: `mean` and `var` lie among the parameters, where
    a checkpoint brings them, but get no gradient. So an example does not depend on its batch.
    """

    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s c"]:
        zeros, ones = nn.initializers.zeros, nn.initializers.ones
        scale, bias, mean, var = (
            self.param(name, init, (x.shape[-1],), self.param_dtype).astype(jnp.float32)
            for name, init in (("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones))
        )
        mean, var = jax.lax.stop_gradient((mean, var))
        times = scale * jax.lax.rsqrt(var + self.epsilon)
        axes = (1,) * (x.ndim - 1) + (x.shape[-1],)
        y = (x.astype(jnp.float32) - mean.reshape(axes)) * times.reshape(axes) + bias.reshape(axes)
        return y.astype(self.dtype or x.dtype)
