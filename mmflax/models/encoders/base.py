"""Base classes of encoders: a default for every attribute in `models/contracts.py`."""

import flax.linen as nn

from mmflax.errors import MmflaxError


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

    def grid(self, image_size: int | tuple[int, int] | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        raise MmflaxError(
            f"the tokens of {type(self).__name__} lie on no grid of patches; use an image encoder "
            "of pixels, such as vit, here."
        )

    def num_tokens(self, image_size: int | tuple[int, int] | None = None) -> int:
        """Tokens returned for an image of that size, CLS included."""
        rows, columns = self.grid(image_size)
        return rows * columns + self.num_prefix


class TextEncoderBase(nn.Module):
    """Base of text encoders."""

    gives_layers = False
    supports_causal = False
    pooling = "none"
