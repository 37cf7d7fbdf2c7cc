"""Base classes of encoders: a default for every attribute in `models/contracts.py`."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.positions import resize_positions

ImageSize = int | tuple[int, int]  # pixels: a side, or (h, w)


def sides(size: ImageSize) -> tuple[int, int]:
    """Height and width of an image."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def variant_sizes(
    what: str,
    variant: Mapping[str, Any],
    given: Mapping[str, Any],
    example: str,
    *,
    part: str = "image_encoder",
) -> dict[str, Any]:
    """The sizes of a named variant (empty: none), overridden by those given one by one.

    Another width without an MLP's is followed by 4 * width. A size of None is not given.
    """
    sizes = dict(variant) | {name: value for name, value in given.items() if value is not None}
    if given.get("width") is not None and "mlp_dim" in given and given["mlp_dim"] is None:
        sizes["mlp_dim"] = 4 * given["width"]
    missing = [name for name in given if name not in sizes]
    if missing:
        raise MmflaxError(
            f"{what} needs a variant such as {example!r} (--config.model.{part}.variant={example}),"
            f" or also {', '.join(missing)}."
        )
    return sizes


class ImageEncoderBase(nn.Module):
    """Base of image encoders. One with a `grid` needs no more; others define `num_tokens`."""

    reads_regions = False
    gives_layers = False
    pool = "none"
    cls_token = False

    @property
    def num_prefix(self) -> int:
        """Tokens before those of the grid."""
        return int(self.cls_token)

    @property
    def has_grid(self) -> bool:
        return type(self).grid is not ImageEncoderBase.grid

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        raise MmflaxError(
            f"the tokens of {type(self).__name__} lie on no grid of patches; use an image encoder "
            "of pixels, such as vit, here."
        )

    def position_grid(self) -> tuple[int, int]:
        """Rows and columns of its table of learned positions."""
        return self.grid()

    def resize_table(
        self, table: Float[Array | np.ndarray, "n d"], old_grid: tuple[int, int]
    ) -> Float[Array, "m d"]:
        """Learned positions of another grid for this encoder's own, as it resizes them itself."""
        return resize_positions(table, old_grid, self.position_grid(), self.num_prefix)

    def num_tokens(self, image_size: ImageSize | None = None) -> int:
        """Tokens returned for an image of that size, CLS included."""
        rows, columns = self.grid(image_size)
        return rows * columns + self.num_prefix


class TextEncoderBase(nn.Module):
    """Base of text encoders."""

    gives_layers = False
    supports_causal = False
    pooling = "none"

    @property
    def num_words(self) -> int:
        """Rows of the word table; 0 where the encoder does not say."""
        return 0
