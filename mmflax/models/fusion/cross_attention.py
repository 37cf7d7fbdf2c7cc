"""Cross-attention one way: one stream reads the other, which stays as its encoder left it.

Every layer is self-attention, attention of the reading stream to the other, `softmax(Q_x K_y^T /
sqrt(k)) V_y`, and an MLP: the Transformer's decoder layer (Vaswani et al. 2017, sec. 3.1), as ALBEF
(Li et al. 2021, sec. 3.1) and BLIP (Li et al. 2022, sec. 3.1: the image-grounded text encoder) lay
it over an image for text.

Reading one way cannot carry later words back to earlier ones, so text that reads the image may be
`causal`: word i then depends on the image and on words up to i alone.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.heads import pool_tokens
from mmflax.models.layers.attention import attention_mask, text_attention_mask
from mmflax.models.layers.blocks import lookup
from mmflax.registry import make

DIRECTIONS = {"text_reads_image": True, "image_reads_text": False}
# form: whether streams are projected and get a type, and both are pooled
FORMS = {"meter": True, "blip": False}


class CrossAttention(Fusion):
    """Fusion by one stream that reads; the other is only projected to `width`.

    In the form "blip" nothing has parameters but the layers: the other goes in as wide as it is,
    what reads is projected only where it is not `width` wide, and `pooled` [b width] is its first
    token as it is (or the mean of its tokens, by `text_pool` or `image_pool`). What follows is of
    the form "meter".

    `pooled` [b 2*width] is of both streams. With `causal` its half for text, read at the first
    word (`text_pool` "cls"), knows the image and that word.
    """

    direction: str = "text_reads_image"
    form: str = "meter"

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
        meter = lookup("form", self.form, FORMS)
        if meter:
            image, text = self.embed(image, text, image_mask, text_mask)
        else:
            wide = (image.shape[-1], self.width) if text_reads else (self.width, text.shape[-1])
            image = self.match_width("image", image, image_mask, wide[0])
            text = self.match_width("text", text, text_mask, wide[1])
            if text_reads:
                text = off_zero(text, text_mask)
            else:
                image = off_zero(image, image_mask)
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        if text_reads:
            own = text_attention_mask(text_mask, text.shape[1], causal=causal)
            stack = self.layers("text_encoder", cross_attention=True)
            text = self.final_norm(stack(text, own, image, to_image, train=train), "text")
        else:
            stack = self.layers("image_encoder", cross_attention=True)
            image = self.final_norm(stack(image, to_image, text, to_text, train=train), "image")
        if meter:
            pooled = self.pool_pair(image, text, image_mask, text_mask)
        elif text_reads:
            pooled = pool_tokens(text, text_mask, pool=self.text_pool)
        else:
            pooled = pool_tokens(image, image_mask, pool=self.image_pool)
        return Fused(image, text, pooled)


def off_zero(x: Array, mask: Mask) -> Array:
    """[b s d] with -1 to 1 in place of masked tokens, which nothing reads but themselves.

    A norm of BERT's epsilon has a slope of a million at zero, where they would be: without a type,
    and with no token to attend to where the modality is absent.
    """
    if mask is None:
        return x
    constant = jnp.linspace(-1.0, 1.0, x.shape[-1], dtype=x.dtype)
    return jnp.where(mask[..., None], x, constant[None, None])


def build(**fields: Any) -> CrossAttention:
    """A `CrossAttention`; `fields` are its own."""
    return make(CrossAttention, fields)
