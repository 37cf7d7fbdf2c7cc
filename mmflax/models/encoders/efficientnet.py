"""EfficientNet (Tan & Le 2019, arXiv:1905.11946): inverted bottlenecks, depthwise, squeeze-excite.

The image encoder of ALIGN (Jia et al. 2021, arXiv:2102.05918). Batch normalization is frozen. As in
the TensorFlow code a convolution of stride 2 pads below and to the right only, for even sides: an
odd kernel k puts k//2 - 1 rows above and k//2 below; blocks named in `square_padding` put k//2 on
every side. Drop-connect drops the branch of whole examples, as there; transformers drops single
numbers.
"""

import math
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.models.encoders.base import ImageEncoderBase, ImageSize, sides, variant_sizes
from mmflax.models.layers.blocks import ACTIVATIONS, DropPath, constrain_batch, lookup
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import CONV_INIT, FrozenBatchNorm, tokens
from mmflax.models.layers.stack import sow_states
from mmflax.registry import make

# (width, depth, image size), as github.com/tensorflow/tpu, efficientnet_builder.py, has them.
SIZES: dict[str, tuple[float, float, int]] = {
    "B0": (1.0, 1.0, 224),
    "B1": (1.0, 1.1, 240),
    "B2": (1.1, 1.2, 260),
    "B3": (1.2, 1.4, 300),
    "B4": (1.4, 1.8, 380),
    "B5": (1.6, 2.2, 456),
    "B6": (1.8, 2.6, 528),
    "B7": (2.0, 3.1, 600),
}
# Each channel is a convolution of its own.
DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class MBConv(Typed):
    """Expand, convolve each channel by itself, squeeze and excite, project; add where shapes allow.

    `skip` says whether the input is added; `padding` is that of the depthwise convolution.
    """

    width: int
    expand: int
    kernel_size: int
    stride: int
    padding: tuple[int, int]
    squeeze: int
    skip: bool
    activation: str = "swish"
    epsilon: float = 1e-3

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        drop_path: float | None = None,
        train: bool,
    ) -> Float[Array, "b u v d"]:
        act = lookup("activation", self.activation, ACTIVATIONS)

        def conv(width: int, name: str, size: int = 1, **fields: Any) -> nn.Conv:
            fields.setdefault("kernel_init", CONV_INIT)
            return nn.Conv(width, (size, size), name=name, **self.dtypes, **fields)

        def norm(name: str) -> FrozenBatchNorm:
            return FrozenBatchNorm(self.epsilon, name=name, **self.dtypes)

        x = constrain_batch(x)
        y, inner = x, x.shape[-1] * self.expand
        if self.expand != 1:
            y = act(norm("expand_norm")(conv(inner, "conv_expand", use_bias=False)(y)))
        depthwise = conv(
            inner,
            "conv_depthwise",
            self.kernel_size,
            strides=self.stride,
            padding=(self.padding, self.padding),
            feature_group_count=inner,
            kernel_init=DEPTHWISE_INIT,
            use_bias=False,
        )
        y = act(norm("depthwise_norm")(depthwise(y)))
        gate = y.mean(axis=(1, 2), keepdims=True)
        gate = conv(inner, "conv_excite")(act(conv(self.squeeze, "conv_squeeze")(gate)))
        y = norm("project_norm")(
            conv(self.width, "conv_project", use_bias=False)(y * nn.sigmoid(gate))
        )
        return x + DropPath()(y, drop_path, train=train) if self.skip else y


class EfficientNet(ImageEncoderBase, Typed):
    """An image to the tokens of its last map [b h*w c], row by row; there is no CLS.

    `width_factor` and `depth_factor` scale the channels and repeats of the stages, which the tuples
    give at factor 1; channels are rounded to multiples of `divisor`. With a mutable collection
    "hidden_states" what enters the blocks and what each gives is sown there as `carry`.
    """

    width_factor: float
    depth_factor: float
    image_size: ImageSize
    divisor: int = 8
    stem: int = 32
    kernel_sizes: tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    widths_in: tuple[int, ...] = (32, 16, 24, 40, 80, 112, 192)
    widths: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    strides: tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    repeats: tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    expands: tuple[int, ...] = (1, 6, 6, 6, 6, 6, 6)
    square_padding: tuple[int, ...] = ()
    squeeze_factor: float = 0.25
    pool: str = "gap"
    activation: str = "swish"
    epsilon: float = 1e-3
    drop_path_rate: float = 0.0

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.rounded(self.widths[-1])

    def rounded(self, width: int) -> int:
        """Channels at this model's width, to a multiple of `divisor`, at most a tenth less."""
        wanted = width * self.width_factor
        near = max(self.divisor, int(wanted + self.divisor / 2) // self.divisor * self.divisor)
        return int(near + self.divisor if near < 0.9 * wanted else near)

    def blocks(self) -> list[dict[str, Any]]:
        """Fields of every block, first to last."""
        blocks: list[dict[str, Any]] = []
        for i, width in enumerate(self.widths):
            entering = self.rounded(self.widths_in[i])
            for j in range(math.ceil(self.depth_factor * self.repeats[i])):
                stride, kernel = self.strides[i] if j == 0 else 1, self.kernel_sizes[i]
                above = below = kernel // 2
                if stride > 1 and len(blocks) not in self.square_padding:
                    above -= 1
                blocks.append(
                    dict(
                        width=self.rounded(width),
                        expand=self.expands[i],
                        kernel_size=kernel,
                        stride=stride,
                        padding=(above, below),
                        squeeze=max(1, int(entering * self.squeeze_factor)),
                        skip=stride == 1 and j > 0,
                    )
                )
                entering = self.rounded(width)
        return blocks

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        side = sides(self.image_size if image_size is None else image_size)
        for kernel, stride, padding in (
            (3, 2, 1),
            *((b["kernel_size"], b["stride"], sum(b["padding"])) for b in self.blocks()),
        ):
            side = tuple((length + padding - kernel) // stride + 1 for length in side)
        return side[0], side[1]

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b n c"]:
        act = lookup("activation", self.activation, ACTIVATIONS)
        x = nn.Conv(
            self.rounded(self.stem),
            (3, 3),
            strides=2,
            padding=((0, 1), (0, 1)),
            use_bias=False,
            kernel_init=CONV_INIT,
            name="conv_stem",
            **self.dtypes,
        )(image)
        states = [act(FrozenBatchNorm(self.epsilon, name="stem_norm", **self.dtypes)(x))]
        blocks = self.blocks()
        for i, fields in enumerate(blocks):
            block = MBConv(
                activation=self.activation,
                epsilon=self.epsilon,
                name=f"blocks_{i}",
                **fields,
                **self.dtypes,
            )
            rate = self.drop_path_rate * i / len(blocks)
            states.append(block(states[-1], drop_path=rate or None, train=train))
        sow_states(self, states)
        return tokens(states[-1])


def build(
    *,
    image_size: ImageSize | None = None,
    variant: str | None = None,
    width_factor: float | None = None,
    depth_factor: float | None = None,
    **fields: Any,
) -> EfficientNet:
    """An `EfficientNet` of a named variant, "B0" to "B7", or of two factors and an image size."""
    named = lookup("EfficientNet variant", variant, SIZES) if variant else ()
    given = dict(width_factor=width_factor, depth_factor=depth_factor, image_size=image_size)
    sizes = variant_sizes("EfficientNet", dict(zip(given, named, strict=False)), given, "B0")
    return make(EfficientNet, {**fields, **sizes})
