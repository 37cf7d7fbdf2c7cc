"""What the families that read regions take from a batch."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.models.encoders.regions import Regions, join_regions
from mmflax.pretrained.families.base import text_zeros


def zeros(encoder: Regions, rows: int) -> dict[str, Any]:
    """A batch with the shapes of a real one: four tokens, three regions."""
    return {
        **text_zeros(rows),
        "regions": jnp.zeros((rows, 3, encoder.feature_dim), jnp.float32),
        "boxes": jnp.zeros((rows, 3, 4), jnp.float32),
        "region_mask": jnp.ones((rows, 3), bool),
    }


def read(
    encoder: Regions, batch: Mapping[str, Any], *, train: bool
) -> tuple[Float[Array, "b n d"], Bool[Array, "b n"] | None]:
    """The regions' tokens and their mask.

    Optional keys: `boxes`, `region_mask`, `region_types` (rows of the encoder's type table) and
    `masked_regions` (hidden in pretraining).
    """
    mask = batch.get("region_mask")
    image: Any = encoder(
        join_regions(batch["regions"], batch.get("boxes")),
        mask,
        batch.get("region_types"),
        batch.get("masked_regions"),
        train=train,
    )
    return image, mask


def pairs(x: Float[Array, "b d"]) -> Float[Array, "p e"]:
    """Rows 2i and 2i+1, of the two images of one example, side by side."""
    return x.reshape(x.shape[0] // 2, -1)
