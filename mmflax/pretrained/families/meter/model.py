"""METER as published (Dou et al. 2022, arXiv:2111.02387): CLIP, RoBERTa and co-attention.

CLIP's image encoder is read without its last layer, but through its last norm.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.clip_vision import build as build_image
from mmflax.models.encoders.vit import ViT
from mmflax.models.fusion.base import Fused
from mmflax.models.fusion.co_attention import CoAttention
from mmflax.models.fusion.co_attention import build as build_fusion
from mmflax.models.heads import VQAHead, name_logits
from mmflax.pretrained.families.base import PairZeros, built, word_logits


class MeterFamily(PairZeros, nn.Module):
    """`image`, `tokens`, `text_mask` to a dict.

    Always `text_features` [b t d], `image_features` [b n d], `pooler_output` [b 2d]. `logits` of
    the head that there is, or `…_logits` of each: "word" [b t v]; "matching", no or yes [b 2];
    "ranking" [b 1]; "answer" [b answers], with `num_images` 2 from `image` and `second_image`,
    whose vectors stand side by side in `pooler_output` [b 4d].
    """

    image_encoder: ViT
    text_encoder: BERT
    fusion: CoAttention
    word_head: bool = False
    matching: bool = False
    ranking: bool = False
    answers: int = 0
    num_images: int = 1

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder, fusion = self.text_encoder, self.fusion
        dtypes = encoder.dtypes
        mask = batch.get("text_mask")
        text: Any = encoder(batch["tokens"], mask, train=train)

        def encode(name: str, image_type: int) -> Fused:
            image: Any = self.image_encoder(batch[name], train=train)
            return fusion(image, text, None, mask, image_type=image_type, train=train)

        views = [encode(name, i + 1) for i, name in enumerate(IMAGES[: self.num_images])]
        pooled = jnp.concatenate([view.pooled for view in views], axis=-1)
        out = {
            "text_features": views[0].text,
            "image_features": views[0].image,
            "pooler_output": pooled,
        }
        scores = {}
        if self.word_head:
            own: dict[str, Any] = dict(
                activation=fusion.layer.activation, epsilon=fusion.layer.epsilon
            )
            scores["word"] = word_logits(encoder, views[0].text, "own", **own)
        if self.matching:
            scores["matching"] = nn.Dense(2, name="matching_head", **dtypes)(pooled)
        if self.ranking:
            scores["ranking"] = nn.Dense(1, name="ranking_head", **dtypes)(pooled)
        if self.answers:
            # As wide inside as one pair's vector, also for two images.
            answer = VQAHead(self.answers, hidden_dim=2 * fusion.width, name="head", **dtypes)
            scores["answer"] = answer(pooled, train=train)
        return out | (name_logits(scores) if scores else {})


IMAGES = ("image", "second_image")


def build(**fields: Any) -> MeterFamily:
    """A `MeterFamily`; its parts are given as keywords of clip_vision, bert and co_attention."""
    return MeterFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
