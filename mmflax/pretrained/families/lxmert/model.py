"""LXMERT as published (Tan & Bansal 2019, arXiv:1908.07490): text, regions, then co-attention.

The original keeps row 0 of its word, position and type tables out of training (`padding_idx=0`),
although position 0 is the first token's; here every row learns. Where a row's regions are all
masked, the original attends to them all the same; here its image is absent.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.regions import Regions
from mmflax.models.encoders.regions import build as build_image
from mmflax.models.fusion.co_attention import CoAttention
from mmflax.models.fusion.co_attention import build as build_fusion
from mmflax.models.heads import VQAHead
from mmflax.models.layers.blocks import ACTIVATIONS, KERNEL_INIT, LayerNorm
from mmflax.pretrained.families import region_inputs
from mmflax.pretrained.families.base import built, word_logits


class LxmertFamily(nn.Module):
    """`tokens`, `text_mask`, `token_types`, `regions`, `boxes`, `region_mask` to a dict.

    Always `language_output` [b t d], `vision_output` [b n d] and `pooled_output` [b d]. With
    `answers` above 0 `question_answering_score` [b answers]. With `word_head` ("tied" to the word
    table, or "own") `prediction_logits` [b t v], with `matching` `cross_relationship_score` [b 2],
    of whether text and image belong together. With `region_heads`, sizes by name, what is predicted
    of each region: `obj` classes, `attr` classes, `feat` features [b n size]. With `labels` above 0
    rows 2i and 2i+1 are the two images of one example (NLVR2), and `logits` [b/2 labels] the
    pair's.
    """

    image_encoder: Regions
    text_encoder: BERT
    fusion: CoAttention
    answers: int = 0
    labels: int = 0
    word_head: str = "none"
    matching: bool = False
    region_heads: tuple[tuple[str, int], ...] = ()

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return region_inputs.zeros(self.image_encoder, rows * (2 if self.labels else 1))

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder, text_mask = self.text_encoder, batch.get("text_mask")
        dtypes = encoder.dtypes
        text: Any = encoder(batch["tokens"], text_mask, batch.get("token_types"), train=train)
        image, image_mask = region_inputs.read(self.image_encoder, batch, train=train)
        fused = self.fusion(image, text, image_mask, text_mask, train=train)
        out = {
            "language_output": fused.text,
            "vision_output": fused.image,
            "pooled_output": fused.pooled,
        }
        if self.answers:
            head = VQAHead(self.answers, "lxmert", name="head", **dtypes)
            out["question_answering_score"] = head(fused.pooled, train=train)
        if self.labels:
            head = VQAHead(self.labels, "lxmert", 2 * encoder.width, name="head", **dtypes)
            out["logits"] = head(region_inputs.pairs(fused.pooled), train=train)
        if self.word_head != "none":
            out["prediction_logits"] = word_logits(encoder, fused.text, self.word_head)
        if self.matching:
            match = nn.Dense(2, kernel_init=KERNEL_INIT, name="matching_head", **dtypes)
            out["cross_relationship_score"] = match(fused.pooled)
        if self.region_heads:

            def dense(size: int, name: str) -> nn.Dense:
                return nn.Dense(size, kernel_init=KERNEL_INIT, name=f"region_{name}", **dtypes)

            y = ACTIVATIONS[encoder.layer.activation](dense(encoder.width, "dense")(fused.image))
            y = LayerNorm(encoder.layer.epsilon, name="region_norm", **dtypes)(y)
            for name, size in self.region_heads:
                out[name] = dense(size, name)(y)
        return out


def build(**fields: Any) -> LxmertFamily:
    """An `LxmertFamily`; its parts are given as keywords of regions, bert and co_attention."""
    return LxmertFamily(
        **built(
            fields,
            image_encoder=build_image,
            text_encoder=build_text,
            fusion=build_fusion,
            region_heads=lambda **sizes: tuple(sizes.items()),
        )
    )
