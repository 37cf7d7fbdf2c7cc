"""Visual question answering as classification over a fixed list of answers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError
from mmflax.losses import softmax_cross_entropy, word_region_loss
from mmflax.metrics.accuracy import accuracy, by_group
from mmflax.models.heads import VQAHead, WordGrounding
from mmflax.tasks.task import Batch, Outputs, Task


class VQAModel(nn.Module):
    """Reads `image, tokens, text_mask` (and `image_mask` if there); gives `{"logits": [b a]}`."""

    backbone: nn.Module
    head: nn.Module
    grounding: nn.Module | None = None

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "..."]]:
        encoded = self.backbone(
            batch["image"],
            batch["tokens"],
            batch["text_mask"],
            batch.get("image_mask"),
            train=train,
        )
        outputs = {"logits": self.head(encoded.pooled, train=train)}
        if self.grounding is not None:
            table = self.backbone.text_encoder.word_embedding.embedding
            outputs["words"] = self.grounding(encoded.patches, table)
        return outputs


def build(
    *,
    backbone: nn.Module,
    num_answers: int,
    question_types: tuple[str, ...] = (),
    head: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
    caption_words: float = 0.0,
) -> Task:
    """The task; `head` holds fields of `VQAHead`, such as `form`.

    `caption_words` above 0 adds that share of `word_region_loss`: words of the picture's caption
    are grounded in its tokens, for data that has captions (and a processor with `caption_length`).
    `label` -1 (an answer outside the list) has zero loss and counts as wrong. Metrics: `accuracy`
    and `accuracy/<type>` for each of `question_types`, numbered by `question_type` in the batch.
    """
    question_types = tuple(question_types)

    def loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        answer = softmax_cross_entropy(
            outputs["logits"], batch["label"], label_smoothing=label_smoothing
        )
        if not caption_words:
            return answer
        if "caption" not in batch:
            raise MmflaxError(
                f"task.caption_words is {caption_words}, but the batch holds no captions; set "
                "processor.caption_length (tokens), or remove task.caption_words."
            )
        words = word_region_loss(outputs["words"], batch["caption"], batch["caption_mask"])
        return answer + caption_words * words

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        whole = accuracy(outputs["logits"], batch["label"])
        if not question_types:
            return {"accuracy": whole}
        parts = by_group(whole, batch["question_type"], question_types)
        return {"accuracy": whole} | {f"accuracy/{name}": part for name, part in parts.items()}

    grounding = WordGrounding() if caption_words else None
    model = VQAModel(backbone, VQAHead(num_answers, **(head or {})), grounding)
    return Task(model, loss, metrics)
