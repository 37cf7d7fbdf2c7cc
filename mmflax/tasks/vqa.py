"""Visual question answering as classification over a fixed list of answers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.losses import softmax_cross_entropy
from mmflax.metrics.accuracy import accuracy, by_group
from mmflax.models.heads import VQAHead
from mmflax.tasks.task import Batch, Outputs, Task


class VQAModel(nn.Module):
    """Reads `image, tokens, text_mask` (and `image_mask` if there); gives `{"logits": [b a]}`."""

    backbone: nn.Module
    head: nn.Module

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Float[Array, "b a"]]:
        encoded = self.backbone(
            batch["image"],
            batch["tokens"],
            batch["text_mask"],
            batch.get("image_mask"),
            train=train,
        )
        return {"logits": self.head(encoded.pooled, train=train)}


def build(
    *,
    backbone: nn.Module,
    num_answers: int,
    question_types: tuple[str, ...] = (),
    head: Mapping[str, Any] | None = None,
    label_smoothing: float = 0.0,
) -> Task:
    """The task; `head` holds fields of `VQAHead`, such as `form`.

    `label` -1 (an answer outside the list) has zero loss and counts as wrong. Metrics: `accuracy`
    and `accuracy/<type>` for each of `question_types`, numbered by `question_type` in the batch.
    """
    question_types = tuple(question_types)

    def loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        return softmax_cross_entropy(
            outputs["logits"], batch["label"], label_smoothing=label_smoothing
        )

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Any]:
        whole = accuracy(outputs["logits"], batch["label"])
        if not question_types:
            return {"accuracy": whole}
        parts = by_group(whole, batch["question_type"], question_types)
        return {"accuracy": whole} | {f"accuracy/{name}": part for name, part in parts.items()}

    model = VQAModel(backbone, VQAHead(num_answers, **(head or {})))
    return Task(model, loss, metrics)
