"""Cross-attention one way: one stream reads the other, which stays as its encoder left it.

Every layer is self-attention, attention of the reading stream to the other, `softmax(Q_x K_y^T /
sqrt(k)) V_y`, and an MLP: the Transformer's decoder layer (Vaswani et al. 2017, sec. 3.1), as ALBEF
(Li et al. 2021, sec. 3.1) and BLIP lay it over an image for text.

Reading one way cannot carry later words back to earlier ones, so text that reads the image may be
`causal`: word i then depends on the image and on words up to i alone.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array

from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.layers.attention import attention_mask, text_attention_mask
from mmflax.models.layers.blocks import lookup
from mmflax.registry import make

DIRECTIONS = {"text_reads_image": True, "image_reads_text": False}


class CrossAttention(Fusion):
    """Fusion by one stream that reads; the other is only projected to `width`.

    `pooled` [b 2*width] is of both streams. With `causal` its half for text, read at the first
    word (`text_pool` "cls"), knows the image and that word.
    """

    direction: str = "text_reads_image"

    @property
    def supports_causal(self) -> bool:
        return self.direction == "text_reads_image"

    @nn.compact
    def fuse(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        *,
        causal: bool = False,
        train: bool,
    ) -> Fused:
        text_reads = lookup("direction", self.direction, DIRECTIONS)
        image, text = self.embed(image, text, image_mask, text_mask)
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        if text_reads:
            own = text_attention_mask(text_mask, text.shape[1], causal=causal)
            stack = self.layers("text_encoder", cross_attention=True)
            text = self.final_norm(stack(text, own, image, to_image, train=train), "text")
        else:
            stack = self.layers("image_encoder", cross_attention=True)
            image = self.final_norm(stack(image, to_image, text, to_text, train=train), "image")
        return Fused(image, text, self.pool_pair(image, text, image_mask, text_mask))


def build(**fields: Any) -> CrossAttention:
    """A `CrossAttention`; `fields` are its own."""
    return make(CrossAttention, fields)
