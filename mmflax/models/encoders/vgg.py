"""VGG (Simonyan & Zisserman 2015, arXiv:1409.1556): an image as the pixels of its last, small map.

Stacks of 3 x 3 convolutions, each stack followed by a halving; with or without batch normalization,
which is frozen.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import ImageEncoderBase, ImageSize, sides
from mmflax.models.layers.blocks import constrain_batch, lookup
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import CONV_INIT, FrozenBatchNorm, max_pool, tokens
from mmflax.models.layers.stack import sow_states
from mmflax.registry import make

# Widths of the convolutions of each stack: the paper's table 1, columns A, B, D and E.
SIZES: dict[str, tuple[tuple[int, ...], ...]] = {
    "11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}


class VGG(ImageEncoderBase, Typed):
    """An image of any size to tokens [b h*w c], a 32nd of its sides; there is no CLS.

    `image_size` (pixels, a side or (h, w)) is what `grid` and `num_tokens` assume. With a mutable
    collection "hidden_states" the image and the map after every halving are sown as `carry`.
    """

    widths: tuple[tuple[int, ...], ...]
    image_size: ImageSize
    batch_norm: bool = False
    pool: str = "gap"

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.widths[-1][-1]

    def grid(self, image_size: ImageSize | None = None) -> tuple[int, int]:
        """Tokens down and across an image of `image_size` pixels (default: the model's own)."""
        rows, columns = sides(self.image_size if image_size is None else image_size)
        times = 2 ** len(self.widths)
        return rows // times, columns // times

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b n c"]:
        x = constrain_batch(image)
        states = [x]
        for stack, widths in enumerate(self.widths):
            for i, width in enumerate(widths):
                x = nn.Conv(
                    width,
                    (3, 3),
                    padding=1,
                    kernel_init=CONV_INIT,
                    name=f"conv_{stack}_{i}",
                    **self.dtypes,
                )(x)
                if self.batch_norm:
                    x = FrozenBatchNorm(name=f"norm_{stack}_{i}", **self.dtypes)(x)
                x = nn.relu(x)
            x = max_pool(x, 2, 2)
            states.append(x)
        sow_states(self, states)
        return tokens(x)


def build(
    *,
    image_size: ImageSize,
    variant: str | None = None,
    widths: Sequence[Sequence[int]] | None = None,
    **fields: Any,
) -> VGG:
    """A `VGG` of a named variant, "11" to "19", or of the widths of each stack."""
    if variant is None and widths is None:
        raise MmflaxError(
            "VGG needs a variant such as '16' (--config.model.image_encoder.variant=16), or widths."
        )
    chosen = lookup("VGG variant", str(variant), SIZES) if widths is None else widths
    return make(VGG, {**fields, "widths": chosen, "image_size": image_size})
