"""What tasks that choose among answers share: a head on the pooled pair, its loss and metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError, option
from mmflax.losses import softmax_cross_entropy
from mmflax.metrics.accuracy import Metric, accuracy, by_group
from mmflax.models.heads import BagOfWords, VQAHead, WordGrounding
from mmflax.tasks.inputs import caption_word_loss, encode, grounded
from mmflax.tasks.task import Batch, Outputs, Record, Task

Loss = Callable[[Outputs, Batch], Float[Array, "b"]]


class PooledModel(nn.Module):
    """Gives `{"logits": [b a], "image_mask": [b n]}`, and `words` [b n v] with `grounding`.

    With a `bag`, a `BagOfWords`, the head reads it beside the pooled pair.
    """

    backbone: nn.Module
    head: nn.Module
    grounding: nn.Module | None = None
    bag: nn.Module | None = None

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        encoded = encode(self.backbone, batch, train=train)
        pooled = encoded.pooled
        if self.bag is not None:
            beside = self.bag(
                batch["tokens"], encoded.text_mask, encoded.image_tokens, encoded.image_mask
            )
            pooled = jnp.concatenate([pooled, beside.astype(pooled.dtype)], axis=-1)
        logits = self.head(pooled, train=train)
        return {"logits": logits, **grounded(self.grounding, self.backbone, encoded)}


def answer_task(
    backbone: nn.Module,
    num_answers: int,
    *,
    score: Callable[[Sequence[Record]], dict[str, float]],
    head: Mapping[str, Any] | None = None,
    loss: Loss | None = None,
    label_smoothing: float = 0.0,
    caption_words: float = 0.0,
    question_types: Sequence[str] = (),
    answers: Sequence[str] = (),
    bag_of_words: int = 0,
    model: Callable[..., nn.Module] = PooledModel,
) -> Task:
    """A task over a fixed list of answers.

    Args:
      score: of the task, see `Task`.
      head: fields of `VQAHead`.
      loss: by default cross-entropy of `label`, 0 for -1 (an answer outside the list).
      caption_words: this times `word_region_loss` is added to the loss.
      question_types: `accuracy/<type>` is given for each, as `question_type` numbers them.
      answers: `accuracy/answer/<answer>` is given for each, over the examples whose answer it is.
      bag_of_words: width of a `BagOfWords` that the head reads beside the pair; 0 = none.
      model: `(backbone, head, grounding)`, such as `PooledModel`, which alone takes a `bag`.
    """
    parts: dict[str, nn.Module] = {}
    if bag_of_words < 0:
        raise MmflaxError(
            f"task.bag_of_words is {bag_of_words}; expected a width, or 0 for none, as in "
            f"{option('task.bag_of_words', 128)}."
        )
    if bag_of_words:
        words = backbone.text_encoder.num_words
        if not words:
            raise MmflaxError(
                f"task.bag_of_words is {bag_of_words}, but {type(backbone.text_encoder).__name__} "
                f"does not say its num_words; give {option('task.bag_of_words', 0)}."
            )
        parts["bag"] = BagOfWords(bag_of_words, words)
    grounding = WordGrounding() if caption_words else None
    module = model(backbone, VQAHead(num_answers, **(head or {})), grounding, **parts)

    def cross_entropy(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        return softmax_cross_entropy(
            outputs["logits"], batch["label"], label_smoothing=label_smoothing
        )

    answer_loss = loss or cross_entropy

    def total(outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
        value = answer_loss(outputs, batch)
        if not caption_words:
            return value
        return value + caption_word_loss(caption_words, outputs, batch)

    def metrics(outputs: Outputs, batch: Batch) -> dict[str, Metric]:
        whole = accuracy(outputs["logits"], batch["label"])
        each = by_group(whole, batch["label"], tuple(answers))
        return by_type("accuracy", whole, batch, question_types) | {
            f"accuracy/answer/{answer}": part for answer, part in each.items()
        }

    def predict(params: Any, batch: Batch) -> dict[str, Array]:
        outputs: Any = module.apply({"params": params}, batch, train=False)
        return {"logits": outputs["logits"]}

    return Task(module, total, metrics, predict, score)


def by_type(
    name: str, metric: Metric, batch: Batch, question_types: Sequence[str]
) -> dict[str, Metric]:
    """The metric, and `<name>/<type>` for each of `question_types` unless "all" is the only one."""
    if set(question_types) <= {"all"}:
        return {name: metric}
    members = by_group(metric, batch["question_type"], tuple(question_types))
    return {name: metric} | {f"{name}/{kind}": part for kind, part in members.items()}


def soft_score(logits: Float[Array, "b a"], answer_scores: Float[Array, "b a"]) -> Metric:
    """What the highest answer is worth to the annotators."""
    best = jnp.argmax(logits, axis=-1)[:, None]
    worth = jnp.take_along_axis(answer_scores, best, axis=-1)[:, 0].astype(jnp.float32)
    return worth, jnp.ones_like(worth)
