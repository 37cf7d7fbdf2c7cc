"""Prediction with a trained model: an image and a text in, an answer or a generated text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmflax import paths
from mmflax.batch_keys import SECOND
from mmflax.data.batch import pad_rows
from mmflax.data.dataset import showing
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model predicts for one example.

    Attributes:
      text: what the model read; None where there was no text.
      answer: the most probable answer, or the text that was generated.
      probability: the model's, in 0..1, not calibrated; of a generated text None.
      top: the most probable answers with their probabilities, best first; of a generated text none.
      score: of a generated text, its (length-normalized, in beam search) log-probability.
    """

    text: str | None
    answer: str
    probability: float | None
    top: tuple[tuple[str, float], ...] = ()
    score: float | None = None


class Predictor:
    """A task, its parameters and its processor.

    Every call runs in padded batches of ``batch_size``, so the model is compiled once.

    Attributes:
      checkpoint: of a run, which one the parameters are, in words.
    """

    checkpoint: str | None = None

    def __init__(self, task: Task, params: Any, processor: Processor, *, batch_size: int = 8):
        if batch_size < 1:
            raise MmflaxError(f"batch_size is {batch_size}; it must be at least 1.")
        self.task, self.model, self.params = task, task.model, params
        # Any image may be absent, whether or not training had such examples.
        self.processor = dataclasses.replace(processor, absent_images=True)
        self.batch_size = batch_size
        model = task.model

        def forward(params: Any, batch: Mapping[str, Any]) -> Any:
            return task.predict(params, batch)  # type: ignore[misc]

        def inspect(params: Any, batch: Mapping[str, Any]) -> Any:
            _, variables = model.apply(
                {"params": params}, batch, train=False, mutable=["intermediates"]
            )
            return variables["intermediates"]

        self._forward: Callable[..., Any] = jax.jit(forward)
        self._inspect: Callable[..., Any] = jax.jit(inspect)

    def predict(
        self,
        image: Any,
        text: str | None | Sequence[str | None] = None,
        *,
        second_image: Any = None,
        top: int = 3,
    ) -> Any:
        """Answers a question about an image, or generates a text about it, for one or many.

        Args:
          image: PIL image, path, encoded bytes or uint8 array [h w 3]; None = no picture; for a
            model of regions a dict of `regions` [n f] and `boxes` [n 4]; or a list of these.
          text: what the model reads, None where the task has no text; or a list of them. One image
            serves all texts of a list, and one text all images.
          second_image: the other image (or a list), for tasks over two.
          top: how many answers to list.

        Returns:
          A ``Prediction``, or a list of them if ``image`` or ``text`` is a list.

        Raises:
          MmflaxError: an unreadable image, an empty question, or lists of different lengths.
        """
        if self.task.predict is None:
            raise MmflaxError(
                "This model neither picks answers nor writes text: of a retrieval task use "
                "mmflax.inference.search.Retriever, of pretraining train a task that answers."
            )
        images, texts, single = _pairs(image, text)
        if not self.processor.reads_text and any(given is not None for given in texts):
            raise MmflaxError(
                "This model was trained on images without texts, so a text would only disturb it; "
                "leave --text out."
            )
        if not self.processor.reads_image and any(given is not None for given in images):
            raise MmflaxError(
                "This model was trained on texts without images, so an image would only disturb "
                "it; leave --image out."
            )
        seconds = second_image if isinstance(second_image, (list, tuple)) else [second_image]
        if self.processor.second_images == (second_image is None):
            expected = "two images" if self.processor.second_images else "one image"
            raise MmflaxError(
                f"This model reads {expected} an example; give second_image accordingly."
            )
        seconds = list(seconds) * (len(texts) if len(seconds) == 1 else 1)
        if len(seconds) != len(texts):
            raise MmflaxError(
                f"There are {len(seconds)} second images for {len(texts)} examples; give equally "
                "many, or one."
            )
        predictions: list[Prediction] = []
        for batch, rows in self._batches(images, texts, seconds):
            outputs = jax.device_get(self._forward(self.params, batch))
            for row in range(rows):
                values = {key: np.asarray(value)[row] for key, value in outputs.items()}
                predictions.append(self._prediction(texts[len(predictions)], values, top))
        return predictions[0] if single else predictions

    def _prediction(self, text: str | None, values: Mapping[str, np.ndarray], top: int) -> Any:
        check_finite(values, text)
        if "tokens" in values:
            score = float(values["scores"]) if "scores" in values else None
            return Prediction(text, self.processor.decode(values["tokens"]), None, score=score)
        top = min(top, len(self.processor.answers))
        best = self.processor.answer(values["logits"], top=top)
        return Prediction(text, best[0][0], best[0][1], tuple(best))

    def attention(self, image: Any, text: str | None) -> dict[str, np.ndarray]:
        """Attention weights of one example: module path -> [layers? h t s], float32.

        The weights are those the answer was computed with (``sow`` in the attention layer).
        """
        batch, _ = next(self._batches([image], [text], [None]))
        weights = paths.leaves(self._inspect(self.params, batch))
        return {
            name.removesuffix("/0"): np.asarray(leaf, np.float32) for name, leaf in weights.items()
        }

    def _batches(
        self, images: Sequence[Any], texts: Sequence[str | None], seconds: Sequence[Any]
    ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        for start in range(0, len(texts), self.batch_size):
            rows = range(start, min(start + self.batch_size, len(texts)))
            raws = [
                {
                    **showing(images[row]),
                    **showing(seconds[row], SECOND),
                    "question": texts[row],
                    "id": _name(images[row]),
                }
                for row in rows
            ]
            batch = self.processor.batch(raws)
            batch.pop("id")
            yield pad_rows(batch, self.batch_size), len(raws)


def check_finite(values: Mapping[str, np.ndarray], text: str | None) -> None:
    """Raises where a score of an example is NaN or infinite."""
    for name in ("logits", "scores"):
        wrong = ~np.isfinite(np.asarray(values.get(name, 0.0), np.float32))
        if wrong.any():
            raise MmflaxError(
                f"{int(wrong.sum())} of {wrong.size} {name} of "
                f"{'the image' if text is None else repr(text)} are not finite, so nothing is "
                "predicted; the parameters, or what the model was given, are out of range."
            )


def _pairs(image: Any, text: Any) -> tuple[list[Any], list[Any], bool]:
    many_images = isinstance(image, (list, tuple))
    many_texts = isinstance(text, (list, tuple))
    images = list(image) if many_images else [image]
    texts = list(text) if many_texts else [text]
    if not images or not texts:
        raise MmflaxError("There is nothing to predict: the list of images or questions is empty.")
    if not many_images:
        images *= len(texts)
    elif not many_texts:
        texts *= len(images)
    if len(images) != len(texts):
        raise MmflaxError(
            f"There are {len(images)} images and {len(texts)} questions; give equally many, or one "
            "of either."
        )
    return images, texts, not (many_images or many_texts)


def _name(image: Any) -> str:
    return str(image) if isinstance(image, str) or hasattr(image, "__fspath__") else "image"
