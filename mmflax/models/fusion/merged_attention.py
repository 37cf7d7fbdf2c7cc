"""Merged attention: one stream of all tokens, `X = [L + e_0; V + e_1]`, in self-attention layers.

Queries, keys and values come from both modalities at once; both streams share every weight. Four
published forms:

- "meter" (Dou et al. 2022, fig. 2): each stream is projected and told apart by a type embedding e;
  both are pooled
- "uniter" (Chen et al. 2020): the streams as their encoders leave them, types and norms included;
  the first token, of the text, is pooled
- "visual_bert" (Li et al. 2019): so, too, but one norm for the joined tokens comes first, which the
  encoders then leave out
- "vilt" (Kim et al. 2021): the streams as they are, a type embedding each; the text's first token
  is pooled. Its layers are pre-norm, and there are no encoders' layers before them

`causal` gives a prefix mask (after PrefixLM, as in SimVLM, Wang et al. 2022, sec. 3.2): the image
reads itself alone, and every word the image and the words up to itself.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mmflax.models.fusion.base import Fused, Fusion, ImageType, Mask
from mmflax.models.layers.attention import attention_mask, both_masks, joint_mask, zero_masked
from mmflax.models.layers.blocks import LayerNorm, lookup
from mmflax.models.layers.config import LayerConfig
from mmflax.registry import flat, make

# form: (projects, and pools both; adds types; normalizes the joined tokens first)
FORMS = {
    "meter": (True, True, False),
    "uniter": (False, False, False),
    "visual_bert": (False, False, True),
    "vilt": (False, True, False),
}


class MergedAttention(Fusion):
    """Fusion in one stream; `pooled` is of its text and of its image tokens [b 2*width], or in the
    other forms than "meter" of its text alone [b width].

    With `causal` what is pooled of the text, read at the first word, knows the image and that word.
    Other forms than "meter" project only a stream whose width differs, where the papers have none.
    `image_type` of a call is the image's row of `num_types` types, one for all or [b]: of a pair of
    images each has its own.
    """

    layer: LayerConfig = flat(LayerConfig, norm_style="post", epsilon=1e-12)
    form: str = "meter"
    num_types: int = 2

    supports_causal = True

    @nn.compact
    def fuse(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        *,
        causal: bool = False,
        image_type: ImageType = 1,
        train: bool,
    ) -> Fused:
        meter, typed, norm_first = lookup("form", self.form, FORMS)
        streams = ("image", image, image_mask), ("text", text, text_mask)
        if meter:
            image, text = (self.project(name)(x, mask) for name, x, mask in streams)
        else:
            image, text = (self.match_width(*stream, self.width) for stream in streams)
        if typed:
            image_row, text_row = self.types(image_type)
            image, text = image + image_row, text + text_row
        lengths = (text.shape[1], image.shape[1])
        used = joint_mask(text_mask, image_mask, lengths)
        mask = attention_mask(used)
        if causal:
            mask = both_masks(mask, prefix_mask(*lengths))
        tokens = jnp.concatenate([text, image], axis=1)
        if norm_first:
            norm = LayerNorm(name="embedding_norm", **self.layer.norm)
            tokens = nn.Dropout(self.layer.dropout_rate)(norm(tokens), deterministic=not train)
            # A norm's slope at zero, where masked tokens are, is a million.
            tokens = zero_masked(tokens, used)
        tokens = self.final_norm(self.layers("encoder")(tokens, mask, train=train), "merged")
        text, image = jnp.split(tokens, [lengths[0]], axis=1)
        if meter:
            return Fused(image, text, self.pool_pair(image, text, image_mask, text_mask))
        return Fused(image, text, self.pool_text(text, text_mask))


def prefix_mask(text: int, image: int) -> Bool[Array, "1 1 s s"]:
    """For tokens [text, image]: all read the image, words also themselves and what lies before."""
    position = jnp.arange(text + image)
    of_image = position >= text
    before = (position[:, None] >= position[None]) & ~of_image[:, None]
    return (before | of_image[None])[None, None]


def build(**fields: Any) -> MergedAttention:
    """A `MergedAttention`; `fields` are its own."""
    return make(MergedAttention, fields)
