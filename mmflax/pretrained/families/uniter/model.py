"""UNITER as published (Chen et al. 2020, arXiv:1909.11740): one stream of words and regions.

Words are all of type 0 and regions of type 1 (of the second image of a pair: 2), so the original's
one table of types is here a row of the text encoder and the other rows of the image encoder.
"""

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
from mmflax.models.heads import MLMHead, VQAHead
from mmflax.models.layers.attention import attention_mask, joint_mask, masked_softmax
from mmflax.models.layers.blocks import KERNEL_INIT, MultiHeadAttention, lookup
from mmflax.models.layers.config import LayerConfig, Typed
from mmflax.pretrained.families import region_inputs
from mmflax.pretrained.families.base import built, dense_head, word_logits

# How a sentence about two images is classified -> whether its images are neighboring rows.
PAIRS = {"none": False, "paired": True, "paired_attn": True, "triplet": False}


class PairAttention(Typed):
    """Two streams [p s d], of neighboring rows, that read each other -> [p 2d].

    Each stream is joined to what it read of the other, and averaged by learned scores, as the
    original's `UniterForNlvr2PairedAttn` does it.
    """

    num_heads: int
    dropout_rate: float = 0.0

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None, *, train: bool
    ) -> Float[Array, "p e"]:
        rate, dtypes = self.dropout_rate, self.dtypes
        config = LayerConfig(self.num_heads, attention_dropout_rate=rate, **dtypes)
        sides = tokens[::2], tokens[1::2]
        masks = (None, None) if mask is None else (mask[::2], mask[1::2])
        join = nn.Dense(tokens.shape[-1], kernel_init=KERNEL_INIT, name="join", **dtypes)
        score = nn.Dense(1, kernel_init=KERNEL_INIT, name="score", **dtypes)
        drop = nn.Dropout(rate, deterministic=not train)
        pooled = []
        for i, name in enumerate(("left", "right")):
            attend = MultiHeadAttention(config, name=f"{name}_attention")
            read = attend(sides[i], sides[1 - i], mask=attention_mask(masks[1 - i]), train=train)
            x = drop(nn.relu(join(jnp.concatenate([read, sides[i]], axis=-1))))
            logits = nn.relu(score(x)).swapaxes(1, 2)[:, None].astype(jnp.float32)  # [p 1 1 s]
            weights = drop(masked_softmax(logits, attention_mask(masks[i])))[:, 0]
            pooled.append(jnp.einsum("pqs,psd->pd", weights.astype(x.dtype), x))
        return jnp.concatenate(pooled, axis=-1)


class UniterFamily(nn.Module):
    """`tokens`, `text_mask`, `regions`, `boxes`, `region_mask` to a dict; token types are not read.

    Always `last_hidden_state` [b t+n d], words first, and `pooler_output` [b d]. With `answers`
    above 0 `logits` [b answers] (VQA; 3 for visual entailment). With `pair` other than "none"
    `logits` [b/2 2] or [b 2] of a sentence about two images: "paired" and "paired_attn" have them
    in rows 2i and 2i+1, "triplet" in one row, where `region_types` [b n] says 0 or 1. With
    `matching` `itm_scores` [b 2], with `ranking` `rank_scores` [b 1]. With `word_head`
    `prediction_scores` [b t v] over the word table, with `feature_head` `prediction_feat` [b n f],
    with `region_labels` above 0 `prediction_soft_label` [b n region_labels].
    """

    image_encoder: Regions
    text_encoder: BERT
    fusion: MergedAttention
    answers: int = 0
    pair: str = "none"
    matching: bool = False
    ranking: bool = False
    word_head: bool = False
    feature_head: bool = False
    region_labels: int = 0

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return region_inputs.zeros(self.image_encoder, rows * (2 if PAIRS[self.pair] else 1))

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder, text_mask = self.text_encoder, batch.get("text_mask")
        dtypes = encoder.dtypes
        text: Any = encoder(batch["tokens"], text_mask, train=train)
        if lookup("pair", self.pair, PAIRS) and batch.get("region_types") is None:
            rows, regions = batch["regions"].shape[:2]
            types = jnp.broadcast_to((jnp.arange(rows) % 2)[:, None], (rows, regions))
            batch = {**batch, "region_types": types}
        image, image_mask = region_inputs.read(self.image_encoder, batch, train=train)
        fused = self.fusion(image, text, image_mask, text_mask, train=train)
        tokens = jnp.concatenate([fused.text, fused.image], axis=1)
        out = {"last_hidden_state": tokens, "pooler_output": fused.pooled}

        def regions_head(size: int, name: str) -> MLMHead:
            return MLMHead(size, "gelu", encoder.layer.epsilon, name=name, **dtypes)

        if self.answers:
            head = VQAHead(self.answers, "lxmert", name="head", **dtypes)
            out["logits"] = head(fused.pooled, train=train)
        if self.pair != "none":
            x = fused.pooled
            if self.pair == "paired":
                x = region_inputs.pairs(x)
            elif self.pair == "paired_attn":
                mask = joint_mask(text_mask, image_mask, (text.shape[1], image.shape[1]))
                attend = PairAttention(
                    encoder.layer.num_heads,
                    encoder.layer.dropout_rate,
                    name="pair_attention",
                    **dtypes,
                )
                x = attend(tokens, mask, train=train)
            out["logits"] = dense_head(encoder, 2, "pair_head")(x)
        if self.matching:
            out["itm_scores"] = dense_head(encoder, 2, "matching_head")(fused.pooled)
        if self.ranking:
            out["rank_scores"] = dense_head(encoder, 1, "ranking_head")(fused.pooled)
        if self.word_head:
            out["prediction_scores"] = word_logits(encoder, fused.text)
        if self.feature_head:
            features = regions_head(self.image_encoder.feature_dim, "feature_head")
            out["prediction_feat"] = features(fused.image, self.image_encoder.feature_kernel)
        if self.region_labels:
            labels = regions_head(self.region_labels, "region_head")
            out["prediction_soft_label"] = labels(fused.image)
        return out


def build(**fields: Any) -> UniterFamily:
    """A `UniterFamily`; its parts are given as keywords of regions, bert and merged_attention."""
    return UniterFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
