"""ViLT as published (Kim et al. 2021, arXiv:2102.03334): words and patches in one transformer.

Every patch is read. The original's `max_image_length` draws that many of them at random, in
evaluation too; published checkpoints have -1, which draws none, and any order of the patches gives
the same numbers.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.patches import Patches
from mmflax.models.encoders.patches import build as build_image
from mmflax.models.fusion.base import Fused
from mmflax.models.fusion.merged_attention import MergedAttention
from mmflax.models.fusion.merged_attention import build as build_fusion
from mmflax.models.heads import VQAHead, name_logits
from mmflax.pretrained.families.base import PairZeros, built, word_logits


class ViltFamily(PairZeros, nn.Module):
    """`image`, `tokens`, `text_mask`, optional `token_types` and `pixel_mask` [b h w] to a dict.

    `last_hidden_state` [b t+n d], text first, and `pooler_output` [b d]. `logits` of the head that
    there is: with `word_head` ("tied" to the word table, or "own") of words [b t v]; with
    `matching` of a pair [b 1]; with `labels` above 0 of answers [b labels], `head_dim` wide inside.
    With `num_images` 2 these come from both images, `second_image` (`second_pixel_mask`) passing
    through after the first, and `pooler_output` [b 2d] is of both.
    """

    image_encoder: Patches
    text_encoder: BERT
    fusion: MergedAttention
    word_head: str = "none"
    matching: bool = False
    labels: int = 0
    head_dim: int | None = None
    num_images: int = 1

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder = self.text_encoder
        dtypes = encoder.dtypes
        text_mask = batch.get("text_mask")
        text: Any = encoder(batch["tokens"], text_mask, batch.get("token_types"), train=train)

        def encode(name: str, image_type: int) -> Fused:
            pixels = batch.get(name.replace("image", "pixel_mask"))
            image = self.image_encoder(batch[name], pixels, train=train)
            mask = None if pixels is None else self.image_encoder.token_mask(pixels)
            return self.fusion(image, text, mask, text_mask, image_type=image_type, train=train)

        views = [encode(name, i + 1) for i, name in enumerate(IMAGES[: self.num_images])]
        first = views[0]
        pooled = jnp.concatenate([view.pooled for view in views], axis=-1)
        out = {
            "last_hidden_state": jnp.concatenate([first.text, first.image], axis=1),
            "pooler_output": pooled,
        }
        scores = {}
        if self.word_head != "none":
            scores["word"] = word_logits(encoder, first.text, self.word_head)
        if self.matching:
            scores["matching"] = nn.Dense(1, name="matching_head", **dtypes)(pooled)
        if self.labels:
            answer = VQAHead(self.labels, hidden_dim=self.head_dim, name="head", **dtypes)
            scores["answer"] = answer(pooled, train=train)
        return out | (name_logits(scores) if scores else {})


IMAGES = ("image", "second_image")


def build(**fields: Any) -> ViltFamily:
    """A `ViltFamily`; its parts are given as keywords of patches, bert and merged_attention."""
    return ViltFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
