"""Zero-shot image classification (Radford et al. 2021, arXiv:2103.00020).

Every label becomes a prompt, whose text embedding is compared with the image's. With several
sentences a label their embeddings are averaged, each at unit length, and scaled to unit length
again, as in CLIP's published notebook.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.data.answers import case_form, grouped
from mmflax.data.batch import pad_rows
from mmflax.errors import MmflaxError
from mmflax.evaluation.corpus import parallel
from mmflax.inference.predict import Prediction
from mmflax.models.contracts import DualFamily
from mmflax.numerics import unit

TEMPLATE = "a photo of a {}."  # CLIP's


class ZeroShot:
    """A published pair of encoders (CLIP, SigLIP, ALIGN) and the labels to choose from.

        clip = mmflax.from_pretrained("path/to/clip-vit-base-patch32")
        zero_shot = ZeroShot(clip, ["cat", "dog"])
        zero_shot.predict("photo.jpg").answer

    The labels' texts are encoded once, here; everything runs in padded batches of `batch_size`, so
    each function is compiled once.

    Args:
      pretrained: `model`, `params` and `processor`, as `mmflax.from_pretrained` gives them.
      labels: what an image may show, such as "cat" or "a cat".
      templates: sentences in which {} stands for the label; by default "a photo of a {}.", without
        its second "a" for labels that begin with an article.
    """

    def __init__(
        self,
        pretrained: Any,
        labels: Sequence[str],
        *,
        templates: Sequence[str] | None = None,
        batch_size: int = 16,
    ):
        model, processor = pretrained.model, pretrained.processor
        compares = isinstance(model, DualFamily)
        if not compares or None in (model.image_encoder, model.text_encoder):
            raise MmflaxError(
                f"{type(model).__name__} does not compare images with texts; use a checkpoint with "
                "both encoders, such as CLIP, SigLIP or ALIGN."
            )
        if processor is None:
            raise MmflaxError(
                "The checkpoint came without what prepares images and texts; put its tokenizer "
                "files and preprocessor_config.json beside the weights."
            )
        if batch_size < 1:
            raise MmflaxError(f"batch_size is {batch_size}; it must be at least 1.")
        self.labels = _checked(labels)
        self.batch_size = batch_size
        self._processor, self._params = processor, pretrained.params
        self.exclusive = model.exclusive
        jit, spread = parallel(pretrained.params)

        def embed(params: Any, batch: Any) -> Any:
            return spread(model.apply({"params": params}, spread(batch)))

        def scores(params: Any, images: Any, texts: Any) -> Any:
            logits = model.apply({"params": params}, images, texts, method="similarity")
            return jax.nn.softmax(logits) if model.exclusive else jax.nn.sigmoid(logits)

        self._embed, self._scores = jit(embed), jit(scores)
        sentences = [prompts(label, templates) for label in self.labels]
        rows = self._all("text_embeds", processor.texts([s for each in sentences for s in each]))
        means = rows.reshape(len(self.labels), -1, rows.shape[-1]).mean(axis=1)
        self.text_embeds = np.asarray(unit(jnp.asarray(means)))

    def probabilities(self, images: Sequence[Any]) -> np.ndarray:
        """[image label] of images: PIL images, paths, encoded bytes or uint8 arrays [h w 3].

        Where `exclusive` (CLIP, ALIGN) they sum to 1; else (SigLIP) each label stands for itself.
        """
        if not len(images):
            raise MmflaxError("There is nothing to predict: the list of images is empty.")
        parts = []
        for start in range(0, len(images), self.batch_size):
            batch = self._processor.images(list(images[start : start + self.batch_size]))
            embeds = self._all("image_embeds", batch)
            padded = pad_rows({"embeds": embeds}, self.batch_size)["embeds"]
            scores = self._scores(self._params, padded, self.text_embeds)
            parts.append(np.asarray(jax.device_get(scores))[: len(embeds)])
        scores = np.concatenate(parts)
        wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        if len(wrong):
            raise MmflaxError(
                f"{len(wrong)} of {len(scores)} images have scores that are not finite, the first "
                f"is number {wrong[0]}; the checkpoint's parameters are out of range."
            )
        return scores

    def predict(self, image: Any, *, top: int = 3) -> Any:
        """A `Prediction` for an image, or a list of them for a list."""
        single = not isinstance(image, (list, tuple))
        predictions = []
        for row in self.probabilities([image] if single else image):
            order = np.argsort(-row, kind="stable")[:top]
            best = tuple((self.labels[i], float(row[i])) for i in order)
            predictions.append(Prediction(None, best[0][0], best[0][1], best))
        return predictions[0] if single else predictions

    def _all(self, name: str, arrays: Mapping[str, Any]) -> np.ndarray:
        """One output of all rows, computed in padded batches."""
        count = len(next(iter(arrays.values())))
        parts = []
        for start in range(0, count, self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = pad_rows({key: value[part] for key, value in arrays.items()}, self.batch_size)
            rows = jax.device_get(self._embed(self._params, batch)[name])
            parts.append(np.asarray(rows)[: count - start])
        return np.concatenate(parts)


def prompts(label: str, templates: Sequence[str] | None = None) -> list[str]:
    """The sentences that stand for a label."""
    if templates is None:
        article = re.match(r"(a|an|the)\s", label, flags=re.IGNORECASE)
        return [(TEMPLATE.replace("a {}", "{}") if article else TEMPLATE).format(label)]
    given = [templates] if isinstance(templates, str) else list(templates)
    wrong = [template for template in given if template.count("{}") != 1]
    if wrong or not given:
        raise MmflaxError(
            f"templates are {given!r}; each needs {{}} once, where the label goes, as in "
            f"{TEMPLATE!r}."
        )
    return [template.replace("{}", label) for template in given]


def _checked(labels: Sequence[str]) -> list[str]:
    given = [labels] if isinstance(labels, str) else list(labels)
    if not given or not all(isinstance(x, str) and x.strip() for x in given):
        raise MmflaxError(f"labels hold {given!r}; expected different texts, at least one.")
    groups = grouped(Counter(given), case_form).values()
    twice = sorted(label for group in groups if group.total() > 1 for label in group)
    if twice:
        what = f"{twice[0]!r} twice" if len(set(twice)) == 1 else " and ".join(map(repr, twice[:2]))
        raise MmflaxError(f"labels hold {what}; expected different texts, at least one.")
    return given
