"""BridgeTower as published (Xu et al. 2023, arXiv:2206.08657): CLIP, RoBERTa and a bridge."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.clip_vision import build as build_image
from mmflax.models.encoders.vit import ViT
from mmflax.models.fusion.bridge import Bridge
from mmflax.models.fusion.bridge import build as build_fusion
from mmflax.models.heads import name_logits
from mmflax.numerics import unit
from mmflax.pretrained.families.base import built, pair_zeros, word_logits


class BridgeTowerFamily(nn.Module):
    """`image`, `tokens`, `text_mask` to a dict; token types are not read.

    Always `text_features` [b t d], `image_features` [b n d] and `pooler_output` [b 2d]. With
    `word_head` ("tied" to the word table, or "own") scores of words [b t v]; with `matching` of a
    pair, no or yes [b 2]: `logits`, or where a checkpoint has both `word_logits` and
    `matching_logits`. With `contrastive` above 0 that many numbers of `text_embeds`,
    `image_embeds`, `cross_embeds` [b e], all three side by side as `contrastive` [b 3 e], and their
    scaled products [b b] that the loss compares.
    """

    image_encoder: ViT
    text_encoder: BERT
    fusion: Bridge
    word_head: str = "none"
    word_activation: str = "gelu"
    word_epsilon: float = 1e-5
    matching: bool = False
    contrastive: int = 0

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return pair_zeros(self.image_encoder, rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        count, mask = self.fusion.num_layers_read, batch.get("text_mask")
        image, image_layers = self.image_encoder(batch["image"], layers=count, train=train)
        text, text_layers = self.text_encoder(batch["tokens"], mask, layers=count, train=train)
        fused = self.fusion(
            image,
            text,
            None,
            mask,
            image_layers=image_layers,
            text_layers=text_layers,
            train=train,
        )
        out = {
            "text_features": fused.text,
            "image_features": fused.image,
            "pooler_output": fused.pooled,
        }
        encoder = self.text_encoder
        dtypes = encoder.dtypes
        scores = {}
        if self.word_head != "none":
            own: dict[str, Any] = dict(activation=self.word_activation, epsilon=self.word_epsilon)
            scores["word"] = word_logits(encoder, fused.text, self.word_head, **own)
        if self.matching:
            scores["matching"] = nn.Dense(2, name="matching_head", **dtypes)(fused.pooled)
        out |= name_logits(scores) if scores else {}
        if self.contrastive:
            out |= self._contrast(text[:, 0], fused.image_read[:, 0], fused.pooled, dtypes)
        return out

    def _contrast(
        self,
        text: Float[Array, "b j"],
        image: Float[Array, "b d"],
        pair: Float[Array, "b e"],
        dtypes: Mapping[str, Any],
    ) -> dict[str, Array]:
        """The text as its encoder leaves it, the image as the fusion reads it, and both fused."""
        embeds = {
            name: unit(nn.Dense(self.contrastive, name=f"{name}_contrast", **dtypes)(x))
            for name, x in (("text", text), ("image", image), ("cross", pair))
        }
        scale = jnp.exp(
            self.param("logit_scale", nn.initializers.constant(2.6592), (), dtypes["param_dtype"])
        )
        out = {f"{name}_embeds": x for name, x in embeds.items()}
        out["contrastive"] = jnp.stack(list(embeds.values()), axis=1)
        for a, b in (("text", "image"), ("text", "cross"), ("image", "cross")):
            product = embeds[a] @ embeds[b].T
            out[f"logits_{a}_to_{b}"] = product * scale.astype(product.dtype)
        return out


def build(**fields: Any) -> BridgeTowerFamily:
    """A `BridgeTowerFamily`; its parts are given as keywords of clip_vision, bert and bridge."""
    return BridgeTowerFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
