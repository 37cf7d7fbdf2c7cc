"""ResNet (He et al. 2016, arXiv:1512.03385): an image as the pixels of its last, small map.

Batch normalization is frozen, as detection keeps it in backbones that it fine-tunes.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import (
    ImageEncoderBase,
    ImageSize,
    sides,
    variant_sizes,
)
from mmflax.models.layers.blocks import ACTIVATIONS, constrain_batch, lookup
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import CONV_INIT, FrozenBatchNorm, max_pool, tokens
from mmflax.models.layers.stack import sow_states
from mmflax.registry import make

# The paper's table 1.
WIDTHS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}
SIZES: dict[str, dict[str, Any]] = {
    "18": dict(block="basic", depths=(2, 2, 2, 2)),
    "34": dict(block="basic", depths=(3, 4, 6, 3)),
    "50": dict(block="bottleneck", depths=(3, 4, 6, 3)),
    "101": dict(block="bottleneck", depths=(3, 4, 23, 3)),
    "152": dict(block="bottleneck", depths=(3, 8, 36, 3)),
}


class ConvNorm(Typed):
    """Convolution without bias, padded to keep the size at stride 1, and its norm."""

    width: int
    kernel_size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        margin = self.kernel_size // 2
        x = nn.Conv(
            self.width,
            kernel_size=(self.kernel_size,) * 2,
            strides=self.stride,
            padding=((margin, margin),) * 2,
            use_bias=False,
            kernel_init=CONV_INIT,
            name="conv",
            **self.dtypes,
        )(x)
        return FrozenBatchNorm(name="norm", **self.dtypes)(x)


class ResNetBlock(Typed):
    """Two convolutions ("basic") or three ("bottleneck"), added to what enters.

    The first two of a bottleneck are a quarter as wide. The stride lies in the second, or with
    `stride_first` in the first, as in the paper. Where the shape changes the input is projected.
    """

    width: int
    block: str
    stride: int = 1
    stride_first: bool = False
    activation: str = "relu"

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        width, inner, stride = self.width, self.width // 4, self.stride
        first, second = (stride, 1) if self.stride_first else (1, stride)
        # (width, kernel, stride) of every convolution.
        convolutions = {
            "basic": ((width, 3, stride), (width, 3, 1)),
            "bottleneck": ((inner, 1, first), (inner, 3, second), (width, 1, 1)),
        }
        x = y = constrain_batch(x)
        for i, sizes in enumerate(lookup("block", self.block, convolutions)):
            # Inside it is a ReLU whatever `activation` is, as in transformers.
            y = ConvNorm(*sizes, name=f"conv_{i}", **self.dtypes)(nn.relu(y) if i else y)
        if stride != 1 or x.shape[-1] != width:
            x = ConvNorm(width, 1, stride, name="shortcut", **self.dtypes)(x)
        return lookup("activation", self.activation, ACTIVATIONS)(x + y)


class ResNet(ImageEncoderBase, Typed):
    """An image of any size to tokens [b h*w c], a 32nd of its sides; there is no CLS.

    `image_size` (pixels, a side or (h, w)) is what `grid` and `num_tokens` assume. With `layers=k`
    above 0 the result is a pair: the tokens, and those of the last k blocks of the last stage.
    With a mutable collection "hidden_states" the stem's map and every stage's are sown as `carry`.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block: str
    image_size: ImageSize
    stem: int = 64
    pool: str = "gap"
    stride_first: bool = False
    downsample_first_stage: bool = False
    activation: str = "relu"

    gives_layers = True

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.widths[-1]

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages."""
        return (2 if self.downsample_first_stage else 1, *(2 for _ in self.depths[1:]))

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        rows, columns = sides(self.image_size if image_size is None else image_size)
        for stride in (2, 2, *self.strides):
            rows, columns = -(-rows // stride), -(-columns // stride)
        return rows, columns

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, layers: int = 0, train: bool
    ) -> Float[Array, "b n c"] | tuple[Float[Array, "b n c"], tuple[Float[Array, "b n c"], ...]]:
        if layers > self.depths[-1]:
            raise MmflaxError(
                f"the outputs of the last {layers} layers were requested, but the last stage of "
                f"this ResNet has {self.depths[-1]} blocks; lower the depth of what reads them."
            )
        x = ConvNorm(self.stem, 7, 2, name="stem", **self.dtypes)(image)
        x = max_pool(lookup("activation", self.activation, ACTIVATIONS)(x), 3, 2, padding=1)
        states: list[Any] = [x]
        outputs: list[Any] = []
        for stage, (width, depth, stride) in enumerate(
            zip(self.widths, self.depths, self.strides, strict=True)
        ):
            outputs = []
            for i in range(depth):
                x = ResNetBlock(
                    width,
                    self.block,
                    stride=1 if i else stride,
                    stride_first=self.stride_first,
                    activation=self.activation,
                    name=f"stage_{stage}_block_{i}",
                    **self.dtypes,
                )(x)
                outputs.append(x)
            states.append(x)
        sow_states(self, states)
        if not layers:
            return tokens(x)
        return tokens(x), tuple(tokens(y) for y in outputs[-layers:])


def build(
    *,
    image_size: ImageSize,
    variant: str | None = None,
    block: str | None = None,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    **fields: Any,
) -> ResNet:
    """A `ResNet` of a named variant, "18" to "152"; sizes given one by one override it."""
    named = lookup("ResNet variant", variant, SIZES) if variant else {}
    sizes = variant_sizes("ResNet", named, dict(block=block, depths=depths), "50")
    widths = lookup("block", sizes["block"], WIDTHS) if widths is None else widths
    return make(ResNet, {**fields, **sizes, "widths": widths, "image_size": image_size})
