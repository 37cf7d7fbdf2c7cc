"""Asking a trained model: a picture and a question in, an answer out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError


@dataclasses.dataclass(frozen=True)
class Prediction:
    """An answer to one question about one picture.

    Attributes:
      answer: the most probable one.
      probability: the model's, in 0..1; not calibrated.
      top: the most probable answers with their probabilities, best first.
    """

    text: str
    answer: str
    probability: float
    top: tuple[tuple[str, float], ...]


class Predictor:
    """A model, its parameters and its processor.

    Every call runs in padded batches of ``batch_size``, so the model is compiled once and not once
    for every number of questions.
    """

    def __init__(self, model: nn.Module, params: Any, processor: Processor, *, batch_size: int = 8):
        if batch_size < 1:
            raise MmflaxError(f"batch_size is {batch_size}; it must be at least 1.")
        self.model, self.params, self.processor = model, params, processor
        self.batch_size = batch_size

        def forward(params: Any, batch: Mapping[str, Any]) -> Any:
            outputs: Any = model.apply({"params": params}, batch, train=False)
            return outputs["logits"]

        def inspect(params: Any, batch: Mapping[str, Any]) -> Any:
            outputs, variables = model.apply(
                {"params": params}, batch, train=False, mutable=["intermediates"]
            )
            return outputs["logits"], variables["intermediates"]

        self._forward = jax.jit(forward)
        self._inspect = jax.jit(inspect)

    def predict(self, image: Any, text: str | Sequence[str], *, top: int = 3) -> Any:
        """Answers a question about a picture, or many.

        Args:
          image: PIL image, path, encoded bytes or uint8 array [h w 3]; or a list of these.
          text: a question or a list of them; one image serves all questions of a list, and one
            question all images.
          top: how many answers to list.

        Returns:
          A ``Prediction``, or a list of them if ``image`` or ``text`` is a list.

        Raises:
          MmflaxError: an unreadable image, an empty question, or lists of different lengths.
        """
        images, texts, single = _pairs(image, text)
        top = min(top, len(self.processor.answers))
        found = []
        for batch, rows in self._batches(images, texts):
            logits = np.asarray(self._forward(self.params, batch))
            found += [self.processor.answer(row, top=top) for row in logits[:rows]]
        predictions = [
            Prediction(text, best[0][0], best[0][1], tuple(best))
            for text, best in zip(texts, found, strict=True)
        ]
        return predictions[0] if single else predictions

    def attention(self, image: Any, text: str) -> dict[str, np.ndarray]:
        """Attention weights of one example: module path -> [layers? h t s], float32.

        The weights are those the answer was computed with (``sow`` in the attention layer).
        """
        batch, _ = next(self._batches([image], [text]))
        _, tree = self._inspect(self.params, batch)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/0"): np.asarray(
                leaf, np.float32
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    def _batches(
        self, images: Sequence[Any], texts: Sequence[str]
    ) -> Iterator[tuple[dict[str, np.ndarray], int]]:
        for start in range(0, len(texts), self.batch_size):
            raws = [
                {"image": image, "question": text, "id": _name(image)}
                for image, text in zip(
                    images[start : start + self.batch_size],
                    texts[start : start + self.batch_size],
                    strict=True,
                )
            ]
            batch = self.processor.batch(raws)
            batch.pop("id")
            fill = self.batch_size - len(raws)
            yield (
                {k: np.concatenate([v, v[-1:].repeat(fill, 0)]) for k, v in batch.items()},
                len(raws),
            )


def _pairs(image: Any, text: str | Sequence[str]) -> tuple[list[Any], list[str], bool]:
    many_images = isinstance(image, (list, tuple))
    many_texts = isinstance(text, (list, tuple))
    images = list(image) if many_images else [image]
    texts = list(text) if many_texts else [str(text) if not isinstance(text, str) else text]
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
