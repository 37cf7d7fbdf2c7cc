"""An image encoder, a text encoder and their fusion as one model."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError


class Encoded(NamedTuple):
    """Fused streams, one vector for the pair, the masks that say which tokens count, and the image
    encoder's tokens as they were before fusion."""

    image: Float[Array, "b n d"]
    text: Float[Array, "b t d"]
    pooled: Float[Array, "b e"]
    image_mask: Bool[Array, "b n"]
    text_mask: Bool[Array, "b t"]
    patches: Float[Array, "b n i"]


class VisionLanguageModel(nn.Module):
    """Encoders and fusion arrive as fields, so any of them can be swapped.

    - image encoder: `(image[b h w 3], *, train) -> [b n d]`
    - text encoder: `(tokens[b t], text_mask[b t], *, train) -> [b t d]`
    - fusion: `(image, text, image_mask, text_mask, *, train) -> Fused(image, text, pooled)`

    `image_mask` is over the encoder's tokens, CLS included. An all-false row means that there is no
    image, and whatever the pixels hold becomes 0 before the encoder. A partly false row hides
    tokens from the fusion only: inside the encoder they have met the others already.
    """

    image_encoder: nn.Module
    text_encoder: nn.Module
    fusion: nn.Module

    def __call__(
        self,
        image: Float[Array, "b h w 3"],
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"],
        image_mask: Bool[Array, "b n"] | None = None,
        *,
        train: bool,
    ) -> Encoded:
        if image_mask is not None:
            present = image_mask.any(axis=1)[:, None, None, None]
            image = jnp.where(present, image, jnp.zeros_like(image))
        patches = self.image_encoder(image, train=train)
        if image_mask is not None and image_mask.shape[1] != patches.shape[1]:
            raise MmflaxError(
                f"image_mask has {image_mask.shape[1]} columns, the image encoder gives "
                f"{patches.shape[1]} tokens (CLS included); make them equal."
            )
        words = self.text_encoder(tokens, text_mask, train=train)
        fused = self.fusion(patches, words, image_mask, text_mask, train=train)
        if image_mask is None:
            image_mask = jnp.ones(patches.shape[:2], bool)
        return Encoded(fused.image, fused.text, fused.pooled, image_mask, text_mask, patches)
