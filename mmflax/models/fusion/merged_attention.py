"""Merged attention: one stream of all tokens, `X = [L + e_0; V + e_1]`, in self-attention layers.

METER's other fusion (Dou et al. 2022, fig. 2), and that of single-stream models such as VisualBERT
and UNITER: queries, keys and values come from both modalities at once, told apart by the type
embeddings e. Both streams share every weight.

`causal` gives a prefix mask (after PrefixLM, as in SimVLM, Wang et al. 2022, sec. 3.2): the image
reads itself alone, and every word the image and the words up to itself.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.models.fusion.base import Fused, Fusion
from mmflax.models.masks import attention_mask, joint_mask


class MergedAttention(Fusion):
    """Fusion in one stream; `pooled` [b 2*width] is of its text and of its image tokens.

    With `causal` the half for text, read at the first word, knows the image and that word.
    """

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b n i"],
        text: Float[Array, "b t j"],
        image_mask: Bool[Array, "b n"] | None = None,
        text_mask: Bool[Array, "b t"] | None = None,
        *,
        causal: bool = False,
        train: bool,
    ) -> Fused:
        image, text = self.enter(image, text, image_mask, text_mask)
        lengths = (text.shape[1], image.shape[1])
        mask = attention_mask(joint_mask(text_mask, image_mask, lengths))
        if causal:
            prefix = prefix_mask(*lengths)
            mask = prefix if mask is None else mask & prefix
        tokens = jnp.concatenate([text, image], axis=1)
        tokens = self.leave(self.stack("encoder")(tokens, mask, train=train), "merged")
        text, image = jnp.split(tokens, [lengths[0]], axis=1)
        return Fused(image, text, self.pool_pair(image, text, image_mask))


def prefix_mask(text: int, image: int) -> Bool[Array, "1 1 s s"]:
    """For tokens [text, image]: all read the image, words also themselves and what lies before."""
    position = jnp.arange(text + image)
    of_image = position >= text
    before = (position[:, None] >= position[None]) & ~of_image[:, None]
    return (before | of_image[None])[None, None]


def build(**fields: Any) -> MergedAttention:
    """A `MergedAttention`; `fields` are its own."""
    return MergedAttention(**fields)
