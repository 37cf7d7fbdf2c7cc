"""Vision Transformer (Dosovitskiy et al. 2021): an image as a sequence of patch tokens."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import (
    ImageEncoderBase,
    ImageSize,
    sides,
    variant_sizes,
)
from mmflax.models.encoders.positions import resize_positions, rope2d, sincos2d
from mmflax.models.encoders.resnet_stem import ResNetStem, stage_depths
from mmflax.models.layers.blocks import (
    TABLE_INIT,
    Block,
    LayerNorm,
    MultiHeadAttention,
    constrain_batch,
    dense,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Layered, StackConfig, Typed
from mmflax.models.layers.conv import CONV_INIT, GroupNorm, patch_embedding
from mmflax.models.layers.product import convolution
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat, make

# S, B, L, H: "Scaling Vision Transformers" (Zhai et al. 2022), table 2; Ti: DeiT (Touvron et al.
# 2021), table 1. B, L, H are those of Dosovitskiy et al. 2021, table 1.
SIZES: dict[str, dict[str, int]] = {
    "Ti": dict(width=192, depth=12, num_heads=3, mlp_dim=768),
    "S": dict(width=384, depth=12, num_heads=6, mlp_dim=1536),
    "B": dict(width=768, depth=12, num_heads=12, mlp_dim=3072),
    "L": dict(width=1024, depth=24, num_heads=16, mlp_dim=4096),
    "H": dict(width=1280, depth=32, num_heads=16, mlp_dim=5120),
}

# position: whether it is a parameter
POSITIONS = {"learned": True, "sincos2d": False, "rope2d": False}
# stem: where its parameters lie
STEMS = {"patch": "patch_embedding", "conv": "conv_stem", "resnet": "resnet_stem"}
# the norm between its convolutions
STEM_NORMS = {"layer": LayerNorm, "group": functools.partial(GroupNorm, groups=8)}


class ViT(ImageEncoderBase, Layered):
    """Pre-norm Vision Transformer; returns every token, CLS first where there is one.

    A `distillation_token` stands between CLS and the patches (DeiT; Touvron et al. 2021).

    `image_size` (pixels, a side or (h, w)) fixes the position table; to move learned positions to
    another resolution pass the table through `resize_positions`. With `any_size` images of every
    size are taken, and learned positions are resampled for each as the published PyTorch models do
    it. With `crop` what is left over at the right and the bottom is not seen, where an image does
    not divide into patches (SigLIP So400m: 384 pixels in patches of 14). `pool` says which summary
    of its tokens a head should take (see `models/heads.py`); the encoder itself never pools.
    `pre_norm`, `patch_bias=False` and `activation="quick_gelu"` give CLIP's tower. `stem="conv"`
    puts a `ConvStem` in place of the patch embedding, with which small data are learned faster;
    `stem_norm` is its norm, "layer" or "group". `stem="resnet"` is the paper's hybrid (sec. 3.1):
    the layers read the map of a `ResNetStem`, of `stem_width` channels at its start and
    `stem_depths` blocks in its stages; `variant="B/16"` with it is R50+ViT-B/16.

    `position` "learned" and "sincos2d" are added to the tokens, "rope2d" turns the queries and keys
    of every layer. `position_scale` multiplies the fixed ones of "sincos2d", whose numbers are
    about as large as those of tokens behind a layer norm: behind a group norm tokens that show
    something are larger, and where things lie is learned late without it. `registers` more tokens
    (Darcet et al. 2024, "Vision transformers need registers"), after the others and without a
    position, take part in the layers and are left out of what is returned.

    With `layers=k` above 0 the result is a pair: the tokens, and those of the last k layers, each
    through the same final norm (as BridgeTower reads CLIP; Xu et al. 2023), or with
    `norm_layers=False` as the layers gave them.
    """

    width: int
    patch_size: int
    image_size: ImageSize
    layer: LayerConfig = flat(LayerConfig, without=("norm_style",))
    stack: StackConfig = flat(StackConfig)
    pool: str = "none"
    cls_token: bool = True
    distillation_token: bool = False
    position: str = "learned"
    position_scale: float = 1.0
    stem: str = "patch"
    stem_norm: str = "layer"
    stem_depths: tuple[int, ...] | None = None
    stem_width: int = 64
    registers: int = 0
    pre_norm: bool = False
    patch_bias: bool = True
    any_size: bool = False
    crop: bool = False

    gives_layers = True

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Patches down and across an image of `image_size` pixels (default: the model's own)."""
        height, width = sides(self.image_size if image_size is None else image_size)
        if not self.crop and (height % self.patch_size or width % self.patch_size):
            raise MmflaxError(
                f"image_size {height}x{width} does not divide into patches of {self.patch_size}; "
                "change image_size or patch_size."
            )
        return height // self.patch_size, width // self.patch_size

    @property
    def num_prefix(self) -> int:
        return int(self.cls_token) + int(self.distillation_token)

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        *,
        layers: int = 0,
        norm_layers: bool = True,
        train: bool,
    ) -> Float[Array, "b n d"] | tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        expected = sides(self.image_size)
        if image.shape[1:3] != expected and not self.any_size:
            raise MmflaxError(
                f"image is {image.shape[1]}x{image.shape[2]} pixels, the model was built for "
                f"{expected[0]}x{expected[1]}; resize the image or set image_size."
            )
        config = self.layer
        x = self._embedding()(image)
        x = x.reshape(x.shape[0], -1, self.width)
        prefix = {"cls": self.cls_token, "distillation_token": self.distillation_token}
        learned = [
            self.param(name, TABLE_INIT, (1, 1, self.width), config.param_dtype)
            for name, wanted in prefix.items()
            if wanted
        ]
        rows = [jnp.broadcast_to(y.astype(x.dtype), (len(x), 1, self.width)) for y in learned]
        x = jnp.concatenate([*rows, x], axis=1)
        grid, length = self.grid((image.shape[1], image.shape[2])), x.shape[1]
        block = functools.partial(Block, config)
        if self.position == "rope2d":
            rotate = functools.partial(rope2d, grid=grid, start=self.num_prefix)
            attention = functools.partial(MultiHeadAttention, config, rotate=rotate)
            block = functools.partial(block, attention_layer=attention)
        else:
            x = x + self._positions(grid).astype(x.dtype)[None]
        if self.registers:
            shape = (1, self.registers, self.width)
            more = self.param("register_token", TABLE_INIT, shape, config.param_dtype)
            more = jnp.broadcast_to(more.astype(x.dtype), (len(x), *shape[1:]))
            x = jnp.concatenate([x, more], axis=1)
        x = constrain_batch(x)
        if self.pre_norm:
            x = LayerNorm(name="pre_norm_layer", **config.norm)(x)
        x = nn.Dropout(config.dropout_rate)(x, deterministic=not train)
        stack = Stack(block, self.stack, name="encoder")
        norm = LayerNorm(name="norm", **config.norm)
        if not layers:
            return norm(stack(x, train=train)[:, :length])
        tokens, outputs = stack(x, layers=layers, train=train)
        outputs = tuple(y[:, :length] for y in outputs)
        if norm_layers:
            outputs = tuple(norm(y) for y in outputs)
            return outputs[-1], outputs
        return norm(tokens[:, :length]), outputs

    def _embedding(self) -> nn.Module:
        """From the image to its grid of tokens."""
        width, side, use_bias = self.width, self.patch_size, self.patch_bias
        name = lookup("stem", self.stem, STEMS)
        if self.stem == "conv":
            fields: Any = dict(use_bias=use_bias, norm=self.stem_norm, **self.layer.norm)
            return ConvStem(width, side, name=name, **fields)
        if self.stem == "resnet":
            fields = dict(use_bias=use_bias, **self.dtypes)
            return ResNetStem(width, side, self.stem_depths, self.stem_width, name=name, **fields)
        return patch_embedding(width, side, self.dtypes, use_bias=use_bias)

    def _positions(self, grid: tuple[int, int]) -> Float[Array, "n d"]:
        """Of the patches of an image with this grid, CLS's first."""
        if lookup("position", self.position, POSITIONS):
            shape = (self.num_tokens(), self.width)
            table = self.param("position_embedding", TABLE_INIT, shape, self.layer.param_dtype)
            return resize_positions(table, self.grid(), grid, self.num_prefix)
        table = self.position_scale * jnp.asarray(sincos2d(grid, self.width))
        return jnp.pad(table, ((self.num_prefix, 0), (0, 0)))


class ConvStem(Typed):
    """An image to a grid of tokens by convolutions (Xiao et al. 2021, arXiv:2106.14881).

    It stands in place of the patch embedding, one linear map of every patch: a few small
    convolutions see edges across patches, which trains faster and needs less data. They are 3x3 of
    stride 2, each twice as wide as the one before, then a 1x1 to `width`.

    `patch_size` (pixels, any number) is the product of the strides: 16 is 2 2 2 2, 12 is 2 2 3.
    The last 3x3 has `width` channels, the one before half of them, and so on. A stride s above 3
    has a kernel of s x s. What is left over at the right and the bottom is not seen.

    Where this differs from the paper: the norm between the convolutions is a layer norm over the
    channels of each pixel (`norm="layer"`, as ConvNeXt's, Liu et al. 2022) or a group norm of 8
    groups (`norm="group"`), not batch normalization, whose running statistics are a state beside
    the parameters; so an example does not depend on its batch.
    """

    width: int
    patch_size: int
    use_bias: bool = True
    norm: str = "layer"
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        rows, columns = (side // self.patch_size for side in image.shape[1:3])
        x = image[:, : rows * self.patch_size, : columns * self.patch_size]
        strides = factors(self.patch_size)
        norm = lookup("stem_norm", self.norm, STEM_NORMS)
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
            x = nn.relu(norm(name=f"norm_{i}", epsilon=self.epsilon, **self.dtypes)(x))
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


def decode_variant(variant: str) -> dict[str, int]:
    """Fields of a variant: "B/16" gives width, depth, num_heads, mlp_dim and patch_size."""
    size, _, patch = variant.partition("/")
    if size not in SIZES or not patch.isdigit():
        raise MmflaxError(
            f"ViT variant is {variant!r}; expected a size of {', '.join(SIZES)}, a slash and the "
            'patch size in pixels, as in "B/16".'
        )
    return {**SIZES[size], "patch_size": int(patch)}


def build(
    *,
    image_size: ImageSize,
    variant: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    num_heads: int | None = None,
    mlp_dim: int | None = None,
    patch_size: int | None = None,
    **fields: Any,
) -> ViT:
    """A `ViT` of a named variant; sizes given one by one override it; `fields` are `ViT`'s."""
    given = dict(
        width=width, depth=depth, num_heads=num_heads, mlp_dim=mlp_dim, patch_size=patch_size
    )
    sizes = variant_sizes("ViT", decode_variant(variant) if variant else {}, given, "B/16")
    if fields.get("registers", 0) < 0:
        raise MmflaxError(f"registers is {fields['registers']}; expected at least 0.")
    if fields.get("position_scale", 1.0) != 1.0 and fields.get("position") != "sincos2d":
        raise MmflaxError(
            f"position_scale is {fields['position_scale']} and position is "
            f"{fields.get('position', 'learned')!r}; only that of 'sincos2d' may be other than 1.0."
        )
    if fields.get("stem") == "resnet":
        stage_depths(sizes["patch_size"], fields.get("stem_depths"))
        if fields.get("stem_width", 1) < 1:
            raise MmflaxError(f"stem_width is {fields['stem_width']}; expected at least 1.")
    lookup("pool", fields.get("pool", "none"), dict.fromkeys(("none", "cls", "gap", "map")))
    return make(ViT, {**fields, **sizes, "image_size": image_size})
