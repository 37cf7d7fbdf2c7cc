"""What tasks that pick among answers share: a head on the pooled pair, and how it is judged."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.losses import softmax_cross_entropy
from mmflax.metrics.accuracy import Metric, accuracy, by_group
from mmflax.models.heads import VQAHead, WordGrounding
from mmflax.tasks.grounding import caption_word_loss, grounded
from mmflax.tasks.inputs import encode
from mmflax.tasks.task import Batch, Outputs


class PooledModel(nn.Module):
    """Reads `image, tokens, text_mask` and what says which of them are absent; gives
    `{"logits": [b a], "image_mask": [b n]}`, and `words` [b n v] with `grounding`."""

    backbone: nn.Module
    head: nn.Module
    grounding: nn.Module | None = None

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        encoded = encode(self.backbone, batch, train=train)
        logits = self.head(encoded.pooled, train=train)
        return {"logits": logits, **grounded(self.grounding, self.backbone, encoded)}


def parts(num_answers: int, head: Mapping[str, Any] | None, caption_words: float) -> dict[str, Any]:
    """The fields of a model beside its backbone; `head` holds fields of `VQAHead`."""
    grounding = WordGrounding() if caption_words else None
    return dict(head=VQAHead(num_answers, **(head or {})), grounding=grounding)


def class_loss(
    label_smoothing: float, caption_words: float
) -> Callable[[Outputs, Batch], Float[Array, "b"]]:
    """Cross-entropy of `label` (0 for -1), plus that share of the caption's words."""

    def loss(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        answer = softmax_cross_entropy(
            outputs["logits"], batch["label"], label_smoothing=label_smoothing
        )
        if not caption_words:
            return answer
        return answer + caption_word_loss(caption_words, outputs, batch)

    return loss


def by_type(
    name: str, metric: Metric, batch: Batch, question_types: tuple[str, ...]
) -> dict[str, Metric]:
    """The metric, and `<name>/<type>` for each of `question_types` unless "all" is the only one."""
    if set(question_types) <= {"all"}:
        return {name: metric}
    members = by_group(metric, batch["question_type"], question_types)
    return {name: metric} | {f"{name}/{kind}": part for kind, part in members.items()}


def class_metrics(
    question_types: tuple[str, ...], answers: tuple[str, ...] = ()
) -> Callable[[Outputs, Batch], dict[str, Metric]]:
    """`accuracy`, `accuracy/<type>`, and `accuracy/answer/<answer>` over examples whose answer it
    is, for each of `answers`."""

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Metric]:
        whole = accuracy(outputs["logits"], batch["label"])
        each = by_group(whole, batch["label"], answers)
        return by_type("accuracy", whole, batch, question_types) | {
            f"accuracy/answer/{answer}": part for answer, part in each.items()
        }

    return metrics


def soft_score(logits: Float[Array, "b a"], answer_scores: Float[Array, "b a"]) -> Metric:
    """What the highest answer is worth to the annotators."""
    best = jnp.argmax(logits, axis=-1)[:, None]
    worth = jnp.take_along_axis(answer_scores, best, axis=-1)[:, 0].astype(jnp.float32)
    return worth, jnp.ones_like(worth)


def predict_logits(model: nn.Module) -> Callable[[Any, Batch], dict[str, Array]]:
    """The task's `predict`: `{"logits": [b a]}`."""

    def predict(params: Any, batch: Batch) -> dict[str, Array]:
        outputs: Any = model.apply({"params": params}, batch, train=False)
        return {"logits": outputs["logits"]}

    return predict
