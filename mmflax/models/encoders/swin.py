"""Swin Transformer (Liu et al. 2021, arXiv:2103.14030): attention in windows of a grid."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import (
    ImageEncoderBase,
    ImageSize,
    sides,
    variant_sizes,
)
from mmflax.models.encoders.positions import resize_positions
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
from mmflax.models.layers.conv import patch_embedding
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat, make

# The paper's four, as github.com/microsoft/Swin-Transformer, configs/swin, has them.
SIZES: dict[str, dict[str, Any]] = {
    "T": dict(width=96, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24)),
    "S": dict(width=96, depths=(2, 2, 18, 2), num_heads=(3, 6, 12, 24)),
    "B": dict(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32)),
    "L": dict(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48)),
}
NORM_EPSILON = 1e-5  # of the norms outside the blocks, whatever `epsilon` is
# position: whether patches are embedded with positions of the whole image besides those in windows
POSITIONS = {"none": False, "learned": True}


class WindowAttention(nn.Module):
    """Self-attention inside windows of `window` x `window` tokens, which start at `-shift`.

    A learned number for every difference of places is added to each head's logits. A grid that does
    not divide is filled up with zeros, which are attended to, as in the published code. A shifted
    window that wraps round the grid is cut where it wraps. A grid no larger than the window is one
    window, or one row of them, unshifted.
    """

    config: LayerConfig
    grid: tuple[int, int]
    window: int
    shift: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], *, mask: None = None, train: bool
    ) -> Float[Array, "b n d"]:
        (rows, columns), (batch, _, width) = self.grid, x.shape
        one_window = min(self.grid) <= self.window
        side, shift = (min(self.grid), 0) if one_window else (self.window, self.shift)
        down, right = -rows % side, -columns % side
        x = x.reshape(batch, rows, columns, width)
        x = jnp.pad(x, ((0, 0), (0, down), (0, right), (0, 0)))
        x = jnp.roll(x, (-shift, -shift), axis=(1, 2))
        x = _to_windows(x, side)
        area = side * side
        num_heads, param_dtype = self.config.num_heads, self.config.param_dtype
        shape = ((2 * self.window - 1) ** 2, num_heads)
        table = self.param("relative_position_embedding", TABLE_INIT, shape, param_dtype)
        bias = table[relative_index(side, self.window)].reshape(area, area, num_heads)
        allowed = None
        if shift:
            allowed = jnp.asarray(window_mask((rows + down, columns + right), side, shift))
            allowed = jnp.tile(allowed, (batch, 1, 1))[:, None]
        attend = MultiHeadAttention(self.config, name="windows")
        x = attend(x, mask=allowed, bias=bias.transpose(2, 0, 1)[None], train=train)
        x = _from_windows(x, side, (rows + down, columns + right))
        x = jnp.roll(x, (shift, shift), axis=(1, 2))
        return x[:, :rows, :columns].reshape(batch, rows * columns, width)


def _to_windows(x: Float[Array, "b h w d"], side: int) -> Float[Array, "e s d"]:
    """Windows of each image one after another, row by row."""
    batch, rows, columns, width = x.shape
    x = x.reshape(batch, rows // side, side, columns // side, side, width)
    return x.swapaxes(2, 3).reshape(-1, side * side, width)


def _from_windows(
    x: Float[Array, "e s d"], side: int, grid: tuple[int, int]
) -> Float[Array, "b h w d"]:
    rows, columns = grid
    x = x.reshape(-1, rows // side, columns // side, side, side, x.shape[-1])
    return x.swapaxes(2, 3).reshape(-1, rows, columns, x.shape[-1])


def relative_index(side: int, window: int) -> np.ndarray:
    """Rows [side^4] of a table for windows of `window`: a query's place minus a key's."""
    place = np.indices((side, side)).reshape(2, -1)
    down, right = place[:, :, None] - place[:, None, :] + window - 1
    return (down * (2 * window - 1) + right).ravel()


def window_mask(grid: tuple[int, int], side: int, shift: int) -> np.ndarray:
    """[windows s s]: whether two places of a shifted window were neighbors before the shift."""
    region = [
        (np.arange(length) >= length - side).astype(int) + (np.arange(length) >= length - shift)
        for length in grid
    ]
    whole = region[0][:, None] * 3 + region[1][None]
    parts = whole.reshape(grid[0] // side, side, grid[1] // side, side).swapaxes(1, 2)
    parts = parts.reshape(-1, side * side)
    return parts[:, :, None] == parts[:, None, :]


class PatchMerging(Typed):
    """Every 2 x 2 tokens as one of twice the width; an odd grid is filled up with zeros."""

    grid: tuple[int, int]

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b m e"]:
        (rows, columns), (batch, _, width) = self.grid, x.shape
        x = x.reshape(batch, rows, columns, width)
        x = jnp.pad(x, ((0, 0), (0, rows % 2), (0, columns % 2), (0, 0)))
        # Down before across, as the published kernels expect the four.
        x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], axis=-1)
        x = LayerNorm(NORM_EPSILON, name="norm", **self.dtypes)(x.reshape(batch, -1, 4 * width))
        return dense(2 * width, self.dtypes, use_bias=False, name="reduction")(x)


class Swin(ImageEncoderBase, Layered):
    """An image to the tokens of its last grid [b n d], row by row; there is no CLS.

    `depths` and `num_heads` are those of the stages; between stages the grid is halved and the
    width, at first `width`, doubled. Images of any size are taken, filled up with zeros to whole
    patches; `image_size` (pixels, a side or (h, w)) is what `grid` and `num_tokens` assume, and
    that of the position table, if there is one (`position="learned"`).

    With `layers=k` above 0 the result is a pair: the tokens, and those of the last k layers of the
    last stage, each through the final norm.
    """

    width: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    image_size: ImageSize
    layer: LayerConfig = flat(
        LayerConfig,
        without=("num_heads", "mlp_dim", "norm_style", "qk_init"),
        num_heads=1,
        epsilon=1e-5,
    )
    stack: StackConfig = flat(StackConfig, without=("depth", "scan_layers"), depth=0)
    patch_size: int = 4
    window_size: int = 7
    mlp_ratio: float = 4.0
    pool: str = "gap"
    position: str = "none"

    gives_layers = True

    def patches(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Patches down and across an image of `image_size` pixels (default: the model's own)."""
        height, width = sides(self.image_size if image_size is None else image_size)
        return -(-height // self.patch_size), -(-width // self.patch_size)

    def position_grid(self) -> tuple[int, int]:
        return self.patches()

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Tokens down and across that leave the last stage."""
        rows, columns = self.patches(image_size)
        for _ in self.depths[1:]:
            rows, columns = -(-rows // 2), -(-columns // 2)
        return rows, columns

    @nn.compact
    def __call__(
        self, image: Float[Array, "b h w 3"], *, layers: int = 0, train: bool
    ) -> Float[Array, "b n d"] | tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        config = self.layer
        grid = self.patches((image.shape[1], image.shape[2]))
        x = self._embed(image, grid)
        x = nn.Dropout(config.dropout_rate)(constrain_batch(x), deterministic=not train)
        last, before = len(self.depths) - 1, 0
        for stage, depth in enumerate(self.depths):
            wanted = layers if stage == last else 0
            x = self._stage(stage, before, grid)(x, layers=wanted, train=train)
            before += depth
            if stage < last:
                x = PatchMerging(grid, name=f"merging_{stage}", **config.dtypes)(x)
                grid = -(-grid[0] // 2), -(-grid[1] // 2)
        norm = LayerNorm(name="norm", **config.norm)
        if not layers:
            return norm(x)
        outputs = tuple(norm(y) for y in x[1])
        return outputs[-1], outputs

    def _embed(self, image: Float[Array, "b h w 3"], grid: tuple[int, int]) -> Array:
        dtypes, side = self.layer.dtypes, self.patch_size
        fill = [(0, 0), (0, -image.shape[1] % side), (0, -image.shape[2] % side), (0, 0)]
        x = patch_embedding(self.width, side, dtypes)(jnp.pad(image, fill))
        x = x.reshape(len(x), -1, self.width)
        x = LayerNorm(NORM_EPSILON, name="embedding_norm", **dtypes)(x)
        if lookup("position", self.position, POSITIONS):
            own = self.patches()
            shape = (own[0] * own[1], self.width)
            table = self.param("position_embedding", TABLE_INIT, shape, self.layer.param_dtype)
            x = x + resize_positions(table, own, grid, 0).astype(x.dtype)[None]
        return x

    def _stage(self, stage: int, before: int, grid: tuple[int, int]) -> Stack:
        """The blocks of a stage, every second one with its windows shifted by half."""
        depth = self.depths[stage]
        config = dataclasses.replace(
            self.layer,
            num_heads=self.num_heads[stage],
            mlp_dim=int(self.mlp_ratio * self.width * 2**stage),
        )

        def block(shift: int) -> functools.partial[Block]:
            attention = functools.partial(WindowAttention, config, grid, self.window_size, shift)
            return functools.partial(Block, config, attention_layer=attention)

        step = self.stack.drop_path_rate / max(sum(self.depths) - 1, 1)
        stack = dataclasses.replace(
            self.stack, depth=depth, drop_path_rate=step * (before + depth - 1)
        )
        blocks = tuple(block(self.window_size // 2 if i % 2 else 0) for i in range(depth))
        return Stack(blocks, stack, drop_path_start=step * before, name=f"stage_{stage}")


def build(
    *,
    image_size: ImageSize,
    variant: str | None = None,
    width: int | None = None,
    depths: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    **fields: Any,
) -> Swin:
    """A `Swin` of a named variant, "T" to "L"; sizes given one by one override it."""
    named = lookup("Swin variant", variant, SIZES) if variant else {}
    given = dict(width=width, depths=depths, num_heads=num_heads)
    sizes = variant_sizes("Swin", named, given, "B")
    depths, num_heads = sizes["depths"], sizes["num_heads"]
    if len(depths) != len(num_heads):
        raise MmflaxError(
            f"Swin has {len(depths)} stages by depths and {len(num_heads)} by num_heads; give both "
            "for every stage."
        )
    return make(Swin, {**fields, **sizes, "image_size": image_size})
