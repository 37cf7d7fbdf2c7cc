"""Co-attention: two streams, each attending to the other's previous layer.

Two published forms, of any depth, both post-norm with BERT's epsilon and erf GELU:

- "lxmert" (Tan & Bansal 2019, sec. 2.2): cross-attention, self-attention, MLP. The released code
  uses ONE cross-attention (with its norm) for both directions, which the paper does not say.
- "meter" (Dou et al. 2022, fig. 2): self-attention, cross-attention, MLP; each stream has its own.

In both, each stream's cross-attention reads what the other stream was before this layer. A stack
of these leaks future words into a text decoder through the image stream, so `causal` is refused.
"""

import functools
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.fusion.base import Fused, Fusion, ImageType, Mask
from mmflax.models.layers.attention import attention_mask
from mmflax.models.layers.blocks import (
    Block,
    LayerNorm,
    MultiHeadAttention,
    constrain_batch,
    layer_scale,
    lookup,
)
from mmflax.models.layers.config import LayerConfig
from mmflax.registry import make

FORMS = {"meter": True, "lxmert": False}  # whether each stream has its own cross-attention


class CoAttentionLayer(nn.Module):
    """One co-attention layer; `(image, text) -> (image, text)`, the carry a `Stack` expects."""

    config: LayerConfig
    form: str = "meter"

    @nn.compact
    def __call__(
        self,
        streams: tuple[Float[Array, "b n d"], Float[Array, "b t d"]],
        image_mask: Bool[Array, "b 1 1 n"] | None = None,
        text_mask: Bool[Array, "b 1 1 t"] | None = None,
        *,
        drop_path: float | Float[Array, ""] | None = None,
        train: bool,
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b t d"]]:
        meter = lookup("form", self.form, FORMS)
        image, text = streams
        block = functools.partial(Block, self.config, cross_attention=meter)
        image_block, text_block = block(name="image"), block(name="text")
        rest: Any = dict(drop_path=drop_path, train=train)
        if meter:
            return (
                image_block(image, image_mask, text, text_mask, **rest),
                text_block(text, text_mask, image, image_mask, **rest),
            )
        attend = MultiHeadAttention(self.config, name="cross_attention")
        norm = LayerNorm(name="cross_attention_norm", **self.config.norm)
        dropout = nn.Dropout(self.config.dropout_rate, deterministic=not train)
        scale = layer_scale(self.config, "cross_attention_layer_scale")

        def cross(x: Array, context: Array, mask: Array | None) -> Array:
            return norm(x + scale(dropout(attend(x, context, mask=mask, train=train))))

        image, text = constrain_batch(image), constrain_batch(text)
        image, text = cross(image, text, text_mask), cross(text, image, image_mask)
        return image_block(image, image_mask, **rest), text_block(text, text_mask, **rest)


class CoAttention(Fusion):
    """A stack of co-attention layers.

    "meter" projects both streams and adds a type embedding (row 0 text, `image_type` of `num_types`
    the image, so that of a pair of images each has its own; no norm after it); `pooled` is of text
    and image [b 2*width]. "lxmert" adds no type, projects only a stream whose width differs, where
    the paper has none, and pools the text alone [b width].
    `norm_style="pre"` ("meter" only; both papers are post-norm) trains better from scratch.
    """

    form: str = "meter"
    num_types: int = 2

    @nn.compact
    def fuse(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        *,
        image_type: ImageType = 1,
        train: bool,
    ) -> Fused:
        meter = lookup("form", self.form, FORMS)
        if self.layer.norm_style == "pre" and not meter:
            raise MmflaxError('form "lxmert" has no norm_style "pre"; use "post", or form "meter".')
        if meter:
            image, text = self.embed(image, text, image_mask, text_mask, image_type)
        else:
            image = self.match_width("image", image, image_mask, self.width)
            text = self.match_width("text", text, text_mask, self.width)
        image, text = self.layers("encoder", CoAttentionLayer, form=self.form)(
            (image, text), attention_mask(image_mask), attention_mask(text_mask), train=train
        )
        image, text = self.final_norm(image, "image"), self.final_norm(text, "text")
        if meter:
            return Fused(image, text, self.pool_pair(image, text, image_mask, text_mask))
        return Fused(image, text, self.pool_text(text, text_mask))


def build(**fields: Any) -> CoAttention:
    """A `CoAttention`; `fields` are its own and those of its layers."""
    return make(CoAttention, fields)
