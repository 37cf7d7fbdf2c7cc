"""From a batch to an encoded pair: the one place that knows which keys say what is absent."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmflax.models.vision_language import Encoded
from mmflax.tasks.task import Batch


def encode(backbone: nn.Module, batch: Batch, *, train: bool, image: str = "image") -> Encoded:
    """Runs the backbone on the batch; `image` is the key of the picture to read.

    `image_mask` [b n] says which image tokens count; without it `image_present` [b] says which
    examples have a picture at all; without either all do.
    """
    mask = image_mask(backbone, batch)
    return backbone(batch[image], batch["tokens"], batch["text_mask"], mask, train=train)


def image_mask(backbone: nn.Module, batch: Batch) -> Bool[Array, "b n"] | None:
    """The mask over the image encoder's tokens that the batch asks for, or None for all."""
    if batch.get("image_mask") is not None:
        return batch["image_mask"]
    present = batch.get("image_present")
    if present is None:
        return None
    tokens = backbone.image_encoder.num_tokens()
    return jnp.broadcast_to(present[:, None], (present.shape[0], tokens))
