"""Cross-attention one way: one stream reads the other, which stays as its encoder left it.

Every layer is self-attention, attention of the reading stream to the other, `softmax(Q_x K_y^T /
sqrt(k)) V_y`, and an MLP: the Transformer's decoder layer (Vaswani et al. 2017, sec. 3.1), as ALBEF
(Li et al. 2021, sec. 3.1) and BLIP lay it over an image for text.

Reading one way cannot carry later words back to earlier ones, so text that reads the image may be
`causal`: word i then depends on the image and on words up to i alone.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from mmflax.models.fusion.base import Fused, Fusion
from mmflax.models.layers.blocks import choose
from mmflax.models.layers.masks import attention_mask, causal_mask

DIRECTIONS = {"text_reads_image": True, "image_reads_text": False}


class CrossAttention(Fusion):
    """Fusion by one stream that reads; the other is only projected to `width`.

    `pooled` [b 2*width] is of both streams. With `causal` its half for text, read at the first
    word, knows the image and that word.
    """

    direction: str = "text_reads_image"

    @property
    def supports_causal(self) -> bool:
        return self.direction == "text_reads_image"

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
        text_reads = choose("direction", self.direction, DIRECTIONS)
        if not text_reads:
            self.refuse(causal, "with direction image_reads_text no word reads anything")
        image, text = self.enter(image, text, image_mask, text_mask)
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        if text_reads:
            own = to_text
            if causal:
                before = causal_mask(text.shape[1])
                own = before if own is None else own & before
            stack = self.stack("text_encoder", cross_attention=True)
            text = self.leave(stack(text, own, image, to_image, train=train), "text")
        else:
            stack = self.stack("image_encoder", cross_attention=True)
            image = self.leave(stack(image, to_image, text, to_text, train=train), "image")
        return Fused(image, text, self.pool_pair(image, text, image_mask))


def build(**fields: Any) -> CrossAttention:
    """A `CrossAttention`; `fields` are its own."""
    return CrossAttention(**fields)
