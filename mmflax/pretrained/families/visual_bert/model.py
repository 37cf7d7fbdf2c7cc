"""VisualBERT as published (Li et al. 2019, arXiv:1908.03557): one stream of words and regions."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.regions import Regions
from mmflax.models.encoders.regions import build as build_image
from mmflax.models.fusion.merged_attention import MergedAttention
from mmflax.models.fusion.merged_attention import build as build_fusion
from mmflax.models.layers.blocks import KERNEL_INIT, lookup
from mmflax.pretrained.families import region_inputs
from mmflax.pretrained.families.base import built, word_logits


class VisualBertFamily(nn.Module):
    """`tokens`, `text_mask`, `token_types`, `regions`, `region_mask` to a dict; boxes are not read.

    Always `last_hidden_state` [b t+n d], words first, and `pooler_output` [b d]. With `word_head`
    ("tied" to the word table, or "own") `prediction_logits` [b t+n v]; with `matching`
    `seq_relationship_logits` [b 2]. With `labels` above 0 `logits` [b labels] as `classifier` says:
    "pooled", or "last_word", the token before the last one of the text (VQA, which ends in [SEP]).
    One score a row (`labels` 1) ranks choices: each is a row of its own.
    """

    image_encoder: Regions
    text_encoder: BERT
    fusion: MergedAttention
    word_head: str = "none"
    matching: bool = False
    labels: int = 0
    classifier: str = "pooled"

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return region_inputs.zeros(self.image_encoder, rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder, text_mask = self.text_encoder, batch.get("text_mask")
        dtypes = encoder.dtypes
        text: Any = encoder(batch["tokens"], text_mask, batch.get("token_types"), train=train)
        image, image_mask = region_inputs.read(self.image_encoder, batch, train=train)
        fused = self.fusion(image, text, image_mask, text_mask, train=train)
        tokens = jnp.concatenate([fused.text, fused.image], axis=1)
        out = {"last_hidden_state": tokens, "pooler_output": fused.pooled}
        if self.word_head != "none":
            out["prediction_logits"] = word_logits(encoder, tokens, self.word_head)
        if self.matching:
            match = nn.Dense(2, kernel_init=KERNEL_INIT, name="matching_head", **dtypes)
            out["seq_relationship_logits"] = match(fused.pooled)
        if self.labels:
            given = {"pooled": fused.pooled, "last_word": last_word(fused.text, text_mask)}
            x = lookup("classifier", self.classifier, given)
            x = nn.Dropout(encoder.layer.dropout_rate)(x, deterministic=not train)
            dense = nn.Dense(self.labels, kernel_init=KERNEL_INIT, name="classifier", **dtypes)
            out["logits"] = dense(x)
        return out


def last_word(text: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None) -> Float[Array, "b d"]:
    """The token before the last one in use."""
    if mask is None:
        return text[:, -2]
    index = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32) - 2, 0)
    return jnp.take_along_axis(text, index[:, None, None], axis=1)[:, 0]


def build(**fields: Any) -> VisualBertFamily:
    """A `VisualBertFamily`; its parts are keywords of regions, bert and merged_attention."""
    return VisualBertFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
