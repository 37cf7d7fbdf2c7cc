"""Layers of convolutional encoders."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import KERNEL_INIT
from mmflax.models.layers.config import Typed
from mmflax.models.layers.product import convolution

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


def standardized_conv(
    width: int, size: int, stride: int, dtypes: Mapping[str, Any], name: str
) -> nn.Conv:
    """A convolution whose kernels have mean 0 and variance 1 (Qiao et al. 2019, arXiv:1903.10520).

    So the size of what it learns does not matter, and a group norm does in place of batch
    normalization. Without bias; padded as TensorFlow's "SAME": a stride s gives ceil(h / s) rows,
    and an odd margin has its larger half at the right and the bottom.
    """
    return nn.Conv(
        width,
        (size, size),
        strides=stride,
        padding="SAME",
        use_bias=False,
        kernel_init=CONV_INIT,
        conv_general_dilated=_standardized,
        name=name,
        **dtypes,
    )


def _standardized(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c d"],
    strides: Any,
    padding: str,
    **more: Any,
) -> Float[Array, "b u v d"]:
    """`convolution` by the standardized kernel, whose statistics are in float32."""
    wide = kernel.astype(jnp.float32)
    wide = wide - wide.mean(axis=(0, 1, 2), keepdims=True)
    variance = jnp.square(wide).mean(axis=(0, 1, 2), keepdims=True)
    wide = (wide * jax.lax.rsqrt(variance + 1e-8)).astype(kernel.dtype)
    margins = jax.lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return convolution(x, wide, strides, margins, **more)


class GroupNorm(Typed):
    """Group normalization (Wu & He 2018, arXiv:1803.08494), in float32 whatever `dtype` is.

    Each image's pixels and a group of its channels have mean 0 and variance 1 together, so that
    pixels keep their sizes beside each other; a layer norm makes those of flat background as large
    as those of edges. An example does not depend on its batch.
    """

    groups: int
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        groups = max(count for count in range(1, self.groups + 1) if channels % count == 0)
        parts = x.astype(jnp.float32).reshape(*x.shape[:-1], groups, -1)
        parts = parts - parts.mean(axis=(1, 2, 4), keepdims=True)
        variance = jnp.square(parts).mean(axis=(1, 2, 4), keepdims=True)
        y = (parts * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        y = y * scale.astype(jnp.float32)[None, None, None]
        return (y + bias.astype(jnp.float32)[None, None, None]).astype(self.dtype or x.dtype)


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
