"""ViLT's image side (Kim et al. 2021, arXiv:2102.03334): an image as patch tokens, without a layer.

One product of every patch, a first token, and learned positions, resampled for the part of the
image that is not padding. What reads the tokens, `merged_attention`, does the rest.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mmflax.models.encoders.base import ImageEncoderBase, ImageSize, sides
from mmflax.models.layers.blocks import TABLE_INIT, constrain_batch
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import patch_embedding
from mmflax.registry import make


class Patches(ImageEncoderBase, Typed):
    """Patch tokens, the first token before them: [b n d], for images of any size.

    `image_size` (pixels, a side or (h, w)) is that of the position table. `pixel_mask` is true on
    the image and false on padding at its right and bottom; positions are spread over the true part.
    """

    width: int
    patch_size: int
    image_size: ImageSize
    dropout_rate: float = 0.0

    pool = "gap"
    cls_token = True

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Patches down and across an image of `image_size` pixels (default: the table's own)."""
        height, width = sides(self.image_size if image_size is None else image_size)
        return height // self.patch_size, width // self.patch_size

    def resize_table(
        self, table: Float[Array | np.ndarray, "n d"], old_grid: tuple[int, int]
    ) -> Float[Array, "m d"]:
        grid = self.position_grid()
        counts = jnp.full((1,), grid[0]), jnp.full((1,), grid[1])
        table = jnp.asarray(table)
        moved = spread(table[1:].reshape(*old_grid, -1), counts, grid)[0]
        return jnp.concatenate([table[:1], moved.reshape(-1, table.shape[1]).astype(table.dtype)])

    def patch_mask(self, pixel_mask: Bool[Array, "b h w"]) -> Bool[Array, "b i j"]:
        """Which patches are of the image: those whose upper left pixel is."""
        height, width = pixel_mask.shape[1:]
        rows, columns = self.grid((height, width))
        down, across = jnp.arange(rows) * height // rows, jnp.arange(columns) * width // columns
        return pixel_mask[:, down][:, :, across]

    def token_mask(self, pixel_mask: Bool[Array, "b h w"]) -> Bool[Array, "b n"]:
        """The mask of the tokens; without any true pixel the first token is false, too."""
        patches = self.patch_mask(pixel_mask).reshape(pixel_mask.shape[0], -1)
        return jnp.concatenate([patches.any(axis=1, keepdims=True), patches], axis=1)

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        pixel_mask: Bool[Array, "b h w"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "b n d"]:
        x = patch_embedding(self.width, self.patch_size, self.dtypes)(image)
        rows = x.shape[0]
        cls = self.param("cls", TABLE_INIT, (1, 1, self.width), self.param_dtype)
        shape = (self.num_tokens(), self.width)
        table = self.param("position_embedding", TABLE_INIT, shape, self.param_dtype)
        counts = jnp.full((1,), x.shape[1]), jnp.full((1,), x.shape[2])
        if pixel_mask is not None:
            mask = self.patch_mask(pixel_mask)
            counts = mask[:, :, 0].sum(axis=1), mask[:, 0].sum(axis=1)
        positions = spread(table[1:].reshape(*self.grid(), -1), counts, (x.shape[1], x.shape[2]))
        x = x + positions.astype(x.dtype)
        first = (cls + table[None, :1]).astype(x.dtype)
        x = jnp.concatenate(
            [jnp.broadcast_to(first, (rows, 1, self.width)), x.reshape(rows, -1, self.width)],
            axis=1,
        )
        return constrain_batch(nn.Dropout(self.dropout_rate)(x, deterministic=not train))


def spread(
    table: Float[Array, "h w d"],
    counts: tuple[Int[Array, "b"], Int[Array, "b"]],
    grid: tuple[int, int],
) -> Float[Array, "b i j d"]:
    """A table over the first `counts` rows and columns of every `grid`, corner on corner; else 0.

    Bilinear, with the first and the last point of the table on the first and the last of the
    image's, as PyTorch's `interpolate(align_corners=True)`.
    """

    def matrix(count: Int[Array, "b"], new: int, old: int) -> Float[Array, "b m k"]:
        step = (old - 1) / jnp.maximum(count - 1, 1).astype(jnp.float32)
        index = jnp.arange(new)[None]
        place = index.astype(jnp.float32) * step[:, None]
        near = jnp.abs(place[:, :, None] - jnp.arange(old, dtype=jnp.float32)[None, None])
        inside = (index < count[:, None])[:, :, None]
        return jnp.where(inside, jnp.maximum(1.0 - near, 0.0), 0.0)

    down, across = (
        matrix(count, new, old)
        for count, new, old in zip(counts, grid, table.shape[:2], strict=True)
    )
    return jnp.einsum(
        "bik,bjl,kld->bijd",
        down,
        across,
        table.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def build(**fields: Any) -> Patches:
    """A `Patches`; `fields` are its own."""
    return make(Patches, fields)
