"""The convolutional stem (Xiao et al. 2021, arXiv:2106.14881): an image to a grid of tokens.

It stands in place of the patch embedding, one linear map of every patch: a few small convolutions
see edges across patches, which trains faster and needs less data.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.layers.blocks import LayerNorm, dense
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import CONV_INIT
from mmflax.models.layers.platform import platform
from mmflax.models.layers.product import widening_product


class ConvStem(Typed):
    """3x3 convolutions of stride 2, each twice as wide as the one before; a 1x1 to `width`.

    `patch_size` (pixels, any number) is the product of the strides: 16 is 2 2 2 2, 12 is 2 2 3.
    The last 3x3 has `width` channels, the one before half of them, and so on. A stride s above 3
    has a kernel of s x s. What is left over at the right and the bottom is not seen.

    Where this differs from the paper: the norm between the convolutions is a layer norm over the
    channels of each pixel (as ConvNeXt's, Liu et al. 2022), not batch normalization, whose running
    statistics are a state beside the parameters; so an example does not depend on its batch.
    """

    width: int
    patch_size: int
    use_bias: bool = True
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        rows, columns = (side // self.patch_size for side in image.shape[1:3])
        x = image[:, : rows * self.patch_size, : columns * self.patch_size]
        strides = factors(self.patch_size)
        for i, stride in enumerate(strides):
            size = max(3, stride)
            # Of stride 2 the last row of padding would not be read; a stride of 3 needs none.
            margin = {1: (1, 1), 2: (1, 0)}.get(stride, (0, 0))
            x = nn.Conv(
                max(1, self.width // 2 ** (len(strides) - 1 - i)),
                (size, size),
                strides=stride,
                padding=(margin, margin),
                use_bias=False,
                kernel_init=CONV_INIT,
                conv_general_dilated=convolution,
                name=f"conv_{i}",
                **self.dtypes,
            )(x)
            x = nn.relu(LayerNorm(name=f"norm_{i}", epsilon=self.epsilon, **self.dtypes)(x))
        return dense(self.width, self.dtypes, use_bias=self.use_bias, name="projection")(x)


def factors(number: int) -> tuple[int, ...]:
    """Prime factors from the smallest to the largest; of 1 only itself."""
    found, factor = [], 2
    while number > 1:
        while number % factor == 0:
            found.append(factor)
            number //= factor
        factor += 1
    return tuple(found) or (1,)


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c d"],
    strides: Any,
    padding: Any,
    **more: Any,
) -> Float[Array, "b i j d"]:
    """`lax.conv_general_dilated` for a `nn.Conv` without groups and dilation.

    XLA's CPU backend takes 1.4 times as long for it and its derivatives as for the same as one
    product of gathered pixels; other backends have their own kernels.
    """
    if platform() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **more)
    return product_form(x, kernel, strides, padding)


def product_form(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], strides: Any, padding: Any
) -> Float[Array, "b i j d"]:
    """The convolution as one product of the pixels under every place of the kernel (im2col)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sides = kernel.shape[:2]
    rows, columns = (
        (size - side) // stride + 1
        for size, side, stride in zip(x.shape[1:3], sides, strides, strict=True)
    )
    if sides == tuple(strides):  # nothing overlaps
        x = x[:, : rows * sides[0], : columns * sides[1]]
        x = x.reshape(x.shape[0], rows, sides[0], columns, sides[1], -1).swapaxes(2, 3)
        pixels = x.reshape(*x.shape[:3], -1)
    else:
        ends = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
        shifted = [
            x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
            for i in range(sides[0])
            for j in range(sides[1])
        ]
        pixels = jnp.concatenate(shifted, axis=-1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return widening_product(pixels, flat, (((3,), (0,)), ((), ())))
