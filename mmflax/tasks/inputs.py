"""From a batch to an encoded pair: the one place that knows which keys say what is absent."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.regions import join_regions
from mmflax.models.vision_language import Encoded
from mmflax.tasks.task import Batch


def encode(backbone: nn.Module, batch: Batch, *, train: bool, image: str = "image") -> Encoded:
    """Runs the backbone on the batch; `image` is the key of the picture to read.

    A backbone of regions reads `regions` [b n f] and `boxes` [b n 4] in its place.

    `image_mask` [b n] says which image tokens count; without it `region_mask` [b n], or
    `image_present` [b], which examples have a picture at all; without any of them all count.
    `image_type` [b], if there, is each picture's row of the fusion's types.
    """
    mask = image_mask(backbone, batch)
    shown = picture(backbone, batch, image)
    kind = {} if batch.get("image_type") is None else {"image_type": batch["image_type"]}
    return backbone(shown, batch["tokens"], batch["text_mask"], mask, **kind, train=train)


def of_regions(backbone: nn.Module) -> bool:
    """Whether its image encoder reads regions, not pixels."""
    return backbone.image_encoder.reads_regions


def picture(backbone: nn.Module, batch: Batch, key: str = "image") -> Float[Array, "b ..."]:
    """What the image encoder reads: pixels under `key`, or features and boxes side by side."""
    if not of_regions(backbone):
        return batch[key]
    if batch.get("regions") is None:
        raise MmflaxError(
            "the image encoder reads regions, but the batch has none; give the dataset a "
            "detector's features under `regions`, or use an image encoder of pixels."
        )
    return join_regions(batch["regions"], batch.get("boxes"))


def image_mask(backbone: nn.Module, batch: Batch) -> Bool[Array, "b n"] | None:
    """The mask over the image encoder's tokens that the batch asks for, or None for all."""
    if batch.get("image_mask") is not None:
        return batch["image_mask"]
    if of_regions(backbone) and batch.get("region_mask") is not None:
        return batch["region_mask"]
    present = batch.get("image_present")
    if present is None:
        return None
    tokens = backbone.image_encoder.num_tokens()
    return jnp.broadcast_to(present[:, None], (present.shape[0], tokens))
