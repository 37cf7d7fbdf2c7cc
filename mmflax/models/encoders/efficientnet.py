"""EfficientNet (Tan & Le 2019, arXiv:1905.11946): inverted bottlenecks, depthwise, squeeze-excite.

The image encoder of ALIGN (Jia et al. 2021, arXiv:2102.05918). Batch normalisation is frozen. As in
the TensorFlow code a convolution of stride 2 pads below and to the right only, for even sides: an
odd kernel k puts k//2 - 1 rows above and k//2 below; blocks named in `square_padding` put k//2 on
every side. Drop-connect drops the branch of whole examples, as there; transformers drops single
numbers.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import ImageEncoderBase
from mmflax.models.layers.blocks import ACTIVATIONS, DropPath, as_dtype, choose, constrain_batch
from mmflax.models.layers.conv import CONV_INIT, FrozenBatchNorm, sow_states, tokens

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


class MBConv(nn.Module):
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
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        *,
        drop_path: float | None = None,
        train: bool,
    ) -> Float[Array, "b u v d"]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        act = choose("activation", self.activation, ACTIVATIONS)

        def conv(width: int, name: str, size: int = 1, **fields: Any) -> nn.Conv:
            fields.setdefault("kernel_init", CONV_INIT)
            return nn.Conv(width, (size, size), name=name, **kinds, **fields)

        def norm(name: str) -> FrozenBatchNorm:
            return FrozenBatchNorm(self.epsilon, name=name, **kinds)

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


class EfficientNet(ImageEncoderBase):
    """An image to the tokens of its last map [b h*w c], row by row; there is no CLS.

    `width_factor` and `depth_factor` scale the channels and repeats of the stages, which the tuples
    give at factor 1; channels are rounded to multiples of `divisor`. With a mutable collection
    "hidden_states" what enters the blocks and what each gives is sown there as `carry`.
    """

    width_factor: float
    depth_factor: float
    image_size: int | tuple[int, int]
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
    dtype: Any = None
    param_dtype: Any = jnp.float32

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
        found: list[dict[str, Any]] = []
        for i, width in enumerate(self.widths):
            entering = self.rounded(self.widths_in[i])
            for j in range(math.ceil(self.depth_factor * self.repeats[i])):
                stride, kernel = self.strides[i] if j == 0 else 1, self.kernel_sizes[i]
                above = below = kernel // 2
                if stride > 1 and len(found) not in self.square_padding:
                    above -= 1
                found.append(
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
        return found

    def grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        size = self.image_size if image_size is None else image_size
        sides = (size, size) if isinstance(size, int) else size
        for kernel, stride, padding in (
            (3, 2, 1),
            *((b["kernel_size"], b["stride"], sum(b["padding"])) for b in self.blocks()),
        ):
            sides = tuple((side + padding - kernel) // stride + 1 for side in sides)
        return sides[0], sides[1]

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b n c"]:
        kinds = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        act = choose("activation", self.activation, ACTIVATIONS)
        x = nn.Conv(
            self.rounded(self.stem),
            (3, 3),
            strides=2,
            padding=((0, 1), (0, 1)),
            use_bias=False,
            kernel_init=CONV_INIT,
            name="conv_stem",
            **kinds,
        )(image)
        states = [act(FrozenBatchNorm(self.epsilon, name="stem_norm", **kinds)(x))]
        blocks = self.blocks()
        for i, fields in enumerate(blocks):
            block = MBConv(
                activation=self.activation,
                epsilon=self.epsilon,
                name=f"blocks_{i}",
                **fields,
                **kinds,
            )
            rate = self.drop_path_rate * i / len(blocks)
            states.append(block(states[-1], drop_path=rate or None, train=train))
        sow_states(self, states)
        return tokens(states[-1])


def build(
    *,
    image_size: int | tuple[int, int] | None = None,
    variant: str | None = None,
    width_factor: float | None = None,
    depth_factor: float | None = None,
    dtype: Any = None,
    param_dtype: Any = "float32",
    **fields: Any,
) -> EfficientNet:
    """An `EfficientNet` of a named variant, "B0" to "B7", or of two factors and an image size."""
    sizes: dict[str, Any] = {}
    if variant is not None:
        found = choose("EfficientNet variant", variant, SIZES)
        sizes = dict(zip(("width_factor", "depth_factor", "image_size"), found, strict=True))
    given = dict(width_factor=width_factor, depth_factor=depth_factor, image_size=image_size)
    sizes |= {name: value for name, value in given.items() if value is not None}
    missing = [name for name in given if name not in sizes]
    if missing:
        raise MmflaxError(
            f"EfficientNet needs a variant such as 'B0', or also {', '.join(missing)}."
        )
    return EfficientNet(**sizes, dtype=as_dtype(dtype), param_dtype=as_dtype(param_dtype), **fields)
