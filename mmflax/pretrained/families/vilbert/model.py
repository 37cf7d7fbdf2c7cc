"""ViLBERT as published (Lu et al. 2019, arXiv:1908.02265; for many tasks: arXiv:1912.02315).

What lies before the first connection belongs to the encoders, the rest to the fusion. Where a
row's regions are all masked, the original attends to them all the same; here its image is absent.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmflax.errors import MmflaxError
from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.regions import Regions
from mmflax.models.encoders.regions import build as build_image
from mmflax.models.fusion.co_transformer import CoTransformer
from mmflax.models.fusion.co_transformer import build as build_fusion
from mmflax.models.heads import MLMHead, VQAHead
from mmflax.models.layers.blocks import TABLE_INIT
from mmflax.pretrained.families import region_inputs
from mmflax.pretrained.families.base import built, dense_head, word_logits


class VilbertFamily(nn.Module):
    """`tokens`, `text_mask`, `token_types`, `regions`, `boxes`, `region_mask` to a dict.

    The first region is the whole image: the mean of the features, and the box 0 0 1 1. With `tasks`
    above 0 the batch's `task` [b] names the task, whose embedding becomes the second token of the
    text: t below counts it.

    Always `sequence_output_t` [b t d], `sequence_output_v` [b n i], `pooled_output` [b e]. With
    `pretraining` `prediction_scores_t` [b t v], `prediction_scores_v` [b n regions] and
    `seq_relationship_score` [b 2]. With `answers` above 0 the heads of the model of many tasks:
    `vil_prediction` [b answers] (VQA), `vil_prediction_gqa` [b gqa_answers], `vil_logit` [b 1]
    (retrieval), `vil_tri_prediction` [b 3] (entailment), `vision_logit` [b n 1], `linguisic_logit`
    [b t 1] (its own spelling), and if rows are even `vil_binary_prediction` [b/2 2] of rows 2i and
    2i+1, the two images of an example of NLVR2.
    """

    image_encoder: Regions
    text_encoder: BERT
    fusion: CoTransformer
    tasks: int = 0
    pretraining: bool = False
    region_labels: int = 1601
    answers: int = 0
    gqa_answers: int = 1533

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        rows = 2 * rows if self.answers else rows
        task = {"task": jnp.zeros(rows, jnp.int32)} if self.tasks else {}
        return region_inputs.zeros(self.image_encoder, rows) | task

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder = self.text_encoder
        dtypes = encoder.dtypes
        text, text_mask = self._read_text(batch, dtypes, train)
        image, image_mask = region_inputs.read(self.image_encoder, batch, train=train)
        fused = self.fusion(image, text, image_mask, text_mask, train=train)
        out = {
            "sequence_output_t": fused.text,
            "sequence_output_v": fused.image,
            "pooled_output": fused.pooled,
        }

        def dropped(x: Array) -> Array:
            return nn.Dropout(encoder.layer.dropout_rate)(x, deterministic=not train)

        def answer(size: int, name: str, hidden: int | None = None) -> VQAHead:
            return VQAHead(size, "lxmert", hidden, name=name, **dtypes)

        pooled = dropped(fused.pooled)
        if self.pretraining:
            out["prediction_scores_t"] = word_logits(encoder, fused.text)
            own = (encoder.layer.activation, encoder.layer.epsilon)
            regions = MLMHead(self.region_labels, *own, name="region_head", **dtypes)
            out["prediction_scores_v"] = regions(fused.image)
            out["seq_relationship_score"] = dense_head(encoder, 2, "matching_head")(pooled)
        if self.answers:
            out["vil_prediction"] = answer(self.answers, "head")(pooled, train=train)
            gqa = answer(self.gqa_answers, "gqa_head")
            out["vil_prediction_gqa"] = gqa(pooled, train=train)
            out["vil_logit"] = dense_head(encoder, 1, "ranking_head")(pooled)
            out["vil_tri_prediction"] = dense_head(encoder, 3, "entailment_head")(pooled)
            if pooled.shape[0] % 2 == 0:
                pairs = region_inputs.pairs(pooled)
                binary = answer(2, "pair_head", pairs.shape[-1])
                out["vil_binary_prediction"] = binary(pairs, train=train)
            chosen = dense_head(encoder, 1, "region_choice")(dropped(fused.image))
            if image_mask is not None:
                hidden = jnp.where(image_mask, 0.0, -10000.0)[..., None]
                chosen = chosen + hidden.astype(chosen.dtype)
            out["vision_logit"] = chosen
            out["linguisic_logit"] = dense_head(encoder, 1, "word_choice")(dropped(fused.text))
        return out

    def _read_text(
        self, batch: Mapping[str, Any], dtypes: Mapping[str, Any], train: bool
    ) -> tuple[Float[Array, "b s d"], Bool[Array, "b s"] | None]:
        encoder, tokens, mask = self.text_encoder, batch["tokens"], batch.get("text_mask")
        if not self.tasks:
            text: Any = encoder(tokens, mask, batch.get("token_types"), train=train)
            return text, mask
        if batch.get("task") is None:
            raise MmflaxError(
                f"this model was trained on {self.tasks} tasks and reads which one to solve; put "
                "its number for each row into the batch as `task`."
            )
        table = nn.Embed(
            self.tasks, encoder.width, embedding_init=TABLE_INIT, name="task_embedding", **dtypes
        )
        words = encoder.embed(tokens, mask, batch.get("token_types"))
        task = table(batch["task"])[:, None]
        words = jnp.concatenate([words[:, :1], task, words[:, 1:]], axis=1)
        if mask is not None:
            # Where the text is absent, so is its task.
            mask = jnp.concatenate([mask[:, :1], mask], axis=1)
        text = encoder.encode(words, mask, train=train)
        return text, mask


def build(**fields: Any) -> VilbertFamily:
    """A `VilbertFamily`; its parts are given as keywords of regions, bert and co_transformer."""
    return VilbertFamily(
        **built(fields, image_encoder=build_image, text_encoder=build_text, fusion=build_fusion)
    )
