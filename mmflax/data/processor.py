"""Raw images and questions to arrays, and logits to answers.

One object serves the pipeline, ``predict`` and ``from_pretrained``, and lies beside the checkpoint,
so that training and prediction can never differ.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from mmflax.batch_keys import PREFIXES, SECOND
from mmflax.data.answers import form_of
from mmflax.data.batch import Batch
from mmflax.data.dataset import PICTURES, Dataset, Raw
from mmflax.data.image import transforms
from mmflax.data.processor_fields import ProcessorFields
from mmflax.data.regions import region_arrays
from mmflax.data.survey import HEAD_ROOM, Survey, fit_length, question_types
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.metrics.vqa import soft_scores

_OWN_IMAGES = ("resize", "filter", "mean", "std")  # with image_size, all that makes an image
UNKNOWN = -1  # label of an answer, or index of a question type, that training did not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor(ProcessorFields):
    """The arrays of examples, and the answers that logits and tokens stand for."""

    @classmethod
    def learn(
        cls,
        dataset: Dataset,
        *,
        image_size: int | None = None,
        vocab_size: int = 8192,
        max_length: int | None = None,
        target_length: int | None = None,
        min_answer_count: int = 1,
        lowercase: bool = True,
        strip_accents: bool = False,
        absent_images: bool | None = None,
        normalize_answers: str | None = None,
        published: Sequence[Any] = (),
        say: Callable[[str], None] | None = None,
        **fields: Any,
    ) -> Processor:
        """Answers and vocabulary from the train split; ``fields`` are this class's own.

        Answers are ordered by frequency, then alphabetically; those of fewer than
        ``min_answer_count`` training examples are left out (VQAv2's custom is 9). A length of None
        fits the training texts, rounded up to a multiple of 8; a question has a quarter more room
        than the longest, or what ``dataset.info["head_room"]`` says, but no more than the
        checkpoint has whose tokenizer is used. With ``strip_accents``
        ("ü" becomes "u"), BERT's custom with lower case, words that differ in accents or voicing
        marks only are one word. What the examples have
        (targets, a second image, regions, absent images, image ids) sets the fields that are not
        given.
        Question types come from every split, since they name metrics and are not learned.
        ``normalize_answers`` None is "vqa" for data of that task or with annotators' answers, else
        "case"; an answer is shown in its commonest spelling, and ``say`` is told in a sentence
        which spellings are one answer.

        ``published`` are `PublishedProcessor`s: the first with a tokenizer gives it, the first with
        image preprocessing gives that; fields given here go before theirs, and where they say all
        of it (image_size, resize, filter, mean, std) theirs is not read.
        """
        train = dataset.source("train")
        if not len(train):
            raise MmflaxError(f"The train split of {dataset.name!r} is empty.")
        seen = Survey(train)
        # Not read where the config says it all: some families' has no square form.
        complete = image_size is not None and all(name in fields for name in _OWN_IMAGES)
        for one in () if complete else reversed(published):
            fields = {**one.image_fields(), **fields}
        fields = {**seen.fields, **fields}
        if absent_images is not None:
            fields["absent_images"] = absent_images
        if fields.get("num_regions") and not seen.images:
            image_size = 0
        if image_size is not None:
            fields["image_size"] = image_size
        if fields.get("image_size") is None:
            raise MmflaxError(
                "The config has no processor.image_size (pixels a side); "
                "give --config.processor.image_size=PIXELS."
            )
        if normalize_answers is None:
            official = seen.annotated or dataset.info.get("task") == "vqa"
            normalize_answers = "vqa" if official else "case"
        answers = seen.answers(min_answer_count, normalize_answers)
        if say is not None:
            for note in seen.notes(normalize_answers):
                say(note)
        given = [one.tokenizer for one in published if one.tokenizer is not None]
        tokenizer = (
            given[0]
            if given
            else Tokenizer.learn(
                # Of images alone the classes' names are all there is.
                seen.texts or answers,
                vocab_size=vocab_size,
                lowercase=lowercase,
                strip_accents=strip_accents,
            )
        )
        seen.check_words(tokenizer)
        if max_length is None and tokenizer.reads_padding:
            max_length = tokenizer.max_length  # such a model knows texts of one length only
        if max_length is None:
            room = dataset.info.get("head_room", HEAD_ROOM)
            max_length = fit_length(tokenizer, seen.questions, room)
            if given:  # a checkpoint has positions for so many
                lengths = (getattr(one, "max_length", 0) for one in published if one.tokenizer)
                max_length = min(max_length, next(lengths) or max_length)
        if target_length is None:
            target_length = fit_length(tokenizer, seen.targets) if seen.targets else 0
        return cls(
            max_length=max_length,
            target_length=target_length,
            tokenizer=tokenizer,
            answers=answers,
            normalize_answers=normalize_answers,
            reads_text=bool(seen.questions),
            question_types=question_types(dataset),
            **fields,
        )

    def image(self, raw: Any, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [h w 3] from a PIL image, bytes, a path, or uint8 [h w 3] / [h w].

        None, an absent image, gives zeros.
        """
        if raw is None:
            side = self.image_size
            out = np.empty((side, side, 3), np.float32) if out is None else out
            out.fill(0.0)
            return out
        scale, shift = self._affine
        return transforms.normalize(self.picture(raw), scale, shift, out)

    def picture(self, raw: Any) -> Image.Image:
        """The RGB image of `image_size` that `image` normalizes, as the model sees it."""
        at_least = max(self.image_size, self.resize_to)
        return transforms.resize(
            transforms.open_image(raw, at_least=at_least if self.draft else None),
            self.image_size,
            how=self.resize,
            filter=self.filter,
            resize_to=self.resize_to,
            floor_crop=self.floor_crop,
        )

    def text(self, text: str | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [t] and text_mask bool [t] (true = use); an empty text raises.

        None, an absent text, gives an all-false mask.
        """
        if text is None:
            pad = np.full(self.max_length, self.tokenizer.pad_id, np.int32)
            return pad, np.zeros(self.max_length, bool)
        if not isinstance(text, str):
            raise MmflaxError(f"The question is {type(text).__name__} {text!r}; expected text.")
        if not self.tokenizer.count(text):
            raise MmflaxError(f"The question {text!r} is empty; ask something in words.")
        return self.tokenizer.encode(text, self.max_length)

    def label(self, answer: str | None) -> int:
        """The answer's index, in any spelling, or -1 for one that is not among ``answers``."""
        if answer is None:
            return UNKNOWN
        label = self._labels.get(answer)
        return self._forms.get(self._form(answer), UNKNOWN) if label is None else label

    def spelled(self, answer: str) -> str:
        """The answer as the list spells it; one that is not among ``answers`` as it is."""
        label = self.label(answer)
        return answer if label == UNKNOWN else self.answers[label]

    def judged(self, raw: Raw) -> Raw:
        """The example with its answers as the list spells them, as predictions are spelled."""
        own = dict(raw)
        if raw.get("answer") is not None:
            own["answer"] = self.spelled(raw["answer"])
        if raw.get("answers"):
            own["answers"] = [self.spelled(answer) for answer in raw["answers"]]
        return own

    def example(self, raw: Raw) -> Batch:
        """The arrays of one raw example; see ``mmflax.batch_keys.CONTRACT``."""
        return {key: value[0] for key, value in self.batch([raw]).items()}

    def batch(self, raws: Sequence[Raw]) -> Batch:
        """Like ``example``, for several at once with a leading batch axis.

        Raises:
          MmflaxError: an image or question that cannot be used, naming the example's id.
        """
        rows, size = len(raws), self.image_size
        prefixes = PREFIXES[: 1 + self.second_images]
        images = {
            prefix + "image": np.empty((rows, size, size, 3), np.float32)
            for prefix in prefixes
            if size
        }
        tokens = np.empty((rows, self.max_length), np.int32)
        text_mask = np.empty((rows, self.max_length), bool)
        for row, raw in enumerate(raws):
            try:
                for key, out in images.items():
                    self.image(self._present(raw, key), out=out[row])
                tokens[row], text_mask[row] = self.text(raw.get("question"))
            except MmflaxError as error:
                raise MmflaxError(f"Example {raw.get('id', '?')}: {error}") from error
        types = [self._types.get(raw.get("question_type", "all"), UNKNOWN) for raw in raws]
        batch = images | {
            "tokens": tokens,
            "text_mask": text_mask,
            "label": np.array([self.label(raw.get("answer")) for raw in raws], np.int32),
            "question_type": np.array(types, np.int32),
            "mask": np.ones(rows, bool),
            "id": np.array([str(raw.get("id", "")) for raw in raws]),
        }
        for prefix in prefixes:
            if self.num_regions:
                shape = self.num_regions, self.region_dim, self.region_classes
                batch |= region_arrays(raws, *shape, self.absent_images, prefix)
            if self.absent_images:
                key = prefix + ("image" if images else "regions")
                present = [raw.get(key) is not None for raw in raws]
                batch[f"{prefix}image_present"] = np.array(present)
        if self.image_keys:
            names = [str(raw.get("image_id", raw.get("id", ""))) for raw in raws]
            batch["image_key"] = np.array([_key(name) for name in names], np.int32)
        if self.soft_answers:
            batch["answer_scores"] = np.stack([self._scores(raw) for raw in raws])
        for name, length in (("caption", self.caption_length), ("target", self.target_length)):
            if length:
                texts = [raw.get(name) for raw in raws]
                batch[name], batch[f"{name}_mask"] = self._encode(texts, length)
        return batch

    def zeros(self, rows: int) -> Batch:
        """A batch of zeros with the shapes and types of a real one, without ``id``."""
        raw: Raw = {"image": np.zeros((1, 1), np.uint8), "question": None}
        if self.num_regions:
            raw |= {key: np.zeros((1, width), np.float32) for key, width in self._widths.items()}
        raw |= {SECOND + key: raw[key] for key in PICTURES if key in raw}
        batch = self.batch([raw])
        batch.pop("id")
        return {key: np.zeros((rows, *v.shape[1:]), v.dtype) for key, v in batch.items()}

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of generated ids: what stands before the first end, without special tokens."""
        ids = [int(token) for token in tokens]
        if self.tokenizer.sep_id in ids:
            ids = ids[: ids.index(self.tokenizer.sep_id)]
        return self.tokenizer.decode(ids)

    def answer(self, logits: Any, top: int = 1) -> list[tuple[str, float]]:
        """The ``top`` most probable answers with their probabilities, from logits [a]."""
        scores = np.asarray(logits, np.float64)
        if scores.shape != (len(self.answers),):
            raise MmflaxError(
                f"The logits have shape {list(scores.shape)}; expected [{len(self.answers)}], one "
                "for each answer of this processor."
            )
        if top < 1:
            raise MmflaxError(f"top is {top}; ask for at least 1 answer.")
        probabilities = softmax(scores)
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.answers[index], float(probabilities[index])) for index in order]

    @property
    def _widths(self) -> dict[str, int]:
        """Numbers that each key holds of a region."""
        widths = {"regions": self.region_dim, "boxes": 4, "region_labels": self.region_classes}
        return {key: width for key, width in widths.items() if width}

    def _present(self, raw: Raw, key: str) -> Any:
        """The image; None only where images may be absent."""
        if raw.get(key) is None and not self.absent_images:
            raise MmflaxError(
                f"there is no {key.replace('_', ' ')}; give one, or "
                "--config.processor.absent_images=True if it may be absent."
            )
        return raw.get(key)

    def _encode(self, texts: Sequence[str | None], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [b s] and mask [b s]; an example without the text gets an all-false mask."""
        tokens = np.full((len(texts), length), self.tokenizer.pad_id, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            if text:
                tokens[row], mask[row] = self.tokenizer.encode(text, length)
        return tokens, mask

    def _scores(self, raw: Raw) -> np.ndarray:
        """What the VQA evaluation would give each answer; an example without annotators counts as
        if all had given its answer."""
        scores = np.zeros(len(self.answers), np.float32)
        given = raw.get("answers") or ([raw["answer"]] if raw.get("answer") else [])
        official = self.normalize_answers == "annotators"
        find = self.label if official else lambda form: self._forms.get(form, UNKNOWN)
        for answer, score in soft_scores(given, None if official else self._form).items():
            label = find(answer)
            if label != UNKNOWN:
                scores[label] = score if raw.get("answers") else 1.0
        return scores

    @functools.cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        return transforms.affine(self.mean, self.std, self.image_size)

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {answer: index for index, answer in enumerate(self.answers)}

    @functools.cached_property
    def _forms(self) -> dict[str, int]:
        """The first answer of each form; a list of others may have several."""
        return {self._form(a): i for i, a in reversed(tuple(enumerate(self.answers)))}

    @property
    def _form(self) -> Callable[[str], str]:
        return form_of(self.normalize_answers)

    @functools.cached_property
    def _types(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.question_types)}


def _key(name: str) -> int:
    """A signed 32-bit digest: two names of a batch collide once in billions."""
    return zlib.crc32(name.encode()) - (1 << 31)
