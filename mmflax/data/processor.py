"""Raw images and questions to arrays, and logits to answers.

One object serves the pipeline, ``predict`` and ``from_pretrained``, and lies beside the checkpoint,
so that training and asking can never differ.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from mmflax.data import transforms
from mmflax.data.batch import Batch
from mmflax.data.dataset import Dataset, Raw
from mmflax.data.tokenizer import Tokenizer
from mmflax.errors import MmflaxError

FILE = "processor.json"
TOKENIZER_FILE = "tokenizer.json"
_FORMAT = 1
UNKNOWN = -1  # label of an answer, or index of a question type, that training did not have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processor:
    """How an example becomes arrays.

    Attributes:
      image_size: pixels a side.
      mean, std: of pixels in 0..1, for each of R, G, B.
      resize: ``squash`` to the square, or ``crop`` its middle after resizing the short side.
      filter: PIL's resampling filter: nearest, box, bilinear, bicubic or lanczos.
      draft: decode large JPEGs at 1/2, 1/4 or 1/8 size (never below ``image_size``); several times
        faster, and a little different from decoding every pixel: turn it off for exact parity.
      max_length: tokens of a question with ``[CLS]`` and ``[SEP]``.
      caption_length: tokens of a caption, for objectives that read one; 0 leaves captions out.
      tokenizer: see ``Tokenizer``.
      answers: label ``i`` means ``answers[i]``.
      question_types: index ``i`` means ``question_types[i]``.
    """

    image_size: int
    max_length: int
    tokenizer: Tokenizer
    answers: tuple[str, ...]
    question_types: tuple[str, ...] = ("all",)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    resize: str = "squash"
    filter: str = "bicubic"
    draft: bool = True
    caption_length: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std", "answers", "question_types"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, value, choices in (
            ("resize", self.resize, transforms.RESIZES),
            ("filter", self.filter, tuple(transforms.FILTERS)),
        ):
            if value not in choices:
                raise MmflaxError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        if self.image_size < 1:
            raise MmflaxError(f"image_size is {self.image_size}; it must be at least 1 pixel.")
        if self.max_length < 3:
            raise MmflaxError(
                f"max_length is {self.max_length}; it must be at least 3: [CLS], a token, [SEP]."
            )
        if self.caption_length != 0 and self.caption_length < 3:
            raise MmflaxError(
                f"caption_length is {self.caption_length}; it must be 0 (none) or at least 3."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise MmflaxError(
                f"mean {self.mean} and std {self.std} must be three numbers each, std above 0."
            )
        for name in ("answers", "question_types"):
            twice = [value for value, n in Counter(getattr(self, name)).items() if n > 1]
            if twice:
                raise MmflaxError(f"{name} lists {twice[0]!r} twice; indices would be ambiguous.")

    @classmethod
    def learn(
        cls,
        dataset: Dataset,
        *,
        image_size: int,
        vocab_size: int = 8192,
        max_length: int | None = None,
        **fields: Any,
    ) -> Processor:
        """Answers and vocabulary from the train split; ``fields`` are this class's own.

        Answers are ordered by frequency, then alphabetically. ``max_length=None`` fits the longest
        training question, rounded up to a multiple of 8. Question types come from every split,
        since they name metrics and are not learned.
        """
        answers: Counter[str] = Counter()
        texts: Counter[str] = Counter()
        captions: list[str] = []
        train = dataset.source("train")
        for index in range(len(train)):
            raw = train[index]
            texts[raw["question"]] += 1
            if raw.get("answer") is not None:
                answers[raw["answer"]] += 1
            if raw.get("caption"):
                captions.append(raw["caption"])
        if not answers:
            raise MmflaxError(
                f"The train split of {dataset.name!r} has no answers; nothing can be learned."
            )
        tokenizer = Tokenizer.learn((*texts.elements(), *captions), vocab_size=vocab_size)
        if max_length is None:
            longest = max(tokenizer.count(text) for text in texts) + 2
            max_length = -(-longest // 8) * 8
        types = {
            source[index].get("question_type", "all")
            for source in dataset.splits.values()
            for index in range(len(source))
        }
        return cls(
            image_size=image_size,
            max_length=max_length,
            tokenizer=tokenizer,
            answers=tuple(sorted(answers, key=lambda answer: (-answers[answer], answer))),
            question_types=tuple(sorted(types)),
            **fields,
        )

    def image(self, raw: Any, out: np.ndarray | None = None) -> np.ndarray:
        """float32 [h w 3] from a PIL image, bytes, a path, or uint8 [h w 3] / [h w]."""
        picture = transforms.open_image(raw, at_least=self.image_size if self.draft else None)
        picture = transforms.resize(picture, self.image_size, how=self.resize, filter=self.filter)
        scale, shift = self._affine
        return transforms.normalise(picture, scale, shift, out)

    def text(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [t] and text_mask bool [t] (true = use); an empty text raises."""
        if not isinstance(text, str):
            raise MmflaxError(f"The question is {type(text).__name__} {text!r}; expected text.")
        if not self.tokenizer.count(text):
            raise MmflaxError(f"The question {text!r} is empty; ask something in words.")
        return self.tokenizer.encode(text, self.max_length)

    def label(self, answer: str | None) -> int:
        """The answer's index, or -1 for one that is not among ``answers``."""
        return UNKNOWN if answer is None else self._labels.get(answer, UNKNOWN)

    def example(self, raw: Raw) -> Batch:
        """``image, tokens, text_mask, label, question_type, mask, id`` of one raw example."""
        return {key: value[0] for key, value in self.batch([raw]).items()}

    def batch(self, raws: Sequence[Raw]) -> Batch:
        """Like ``example``, for several at once with a leading batch axis.

        Raises:
          MmflaxError: an image or question that cannot be used, naming the example's id.
        """
        rows, size = len(raws), self.image_size
        image = np.empty((rows, size, size, 3), np.float32)
        tokens = np.empty((rows, self.max_length), np.int32)
        text_mask = np.empty((rows, self.max_length), bool)
        for row, raw in enumerate(raws):
            try:
                self.image(raw["image"], out=image[row])
                tokens[row], text_mask[row] = self.text(raw["question"])
            except MmflaxError as error:
                raise MmflaxError(f"Example {raw.get('id', '?')}: {error}") from error
        captions = self._captions(raws) if self.caption_length else {}
        types = [self._types.get(raw.get("question_type", "all"), UNKNOWN) for raw in raws]
        return {
            "image": image,
            "tokens": tokens,
            "text_mask": text_mask,
            **captions,
            "label": np.array([self.label(raw.get("answer")) for raw in raws], np.int32),
            "question_type": np.array(types, np.int32),
            "mask": np.ones(rows, bool),
            "id": np.array([str(raw.get("id", "")) for raw in raws]),
        }

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
        odds = np.exp(scores - scores.max())
        probabilities = odds / odds.sum()
        order = np.argsort(-probabilities, kind="stable")[:top]
        return [(self.answers[index], float(probabilities[index])) for index in order]

    def save(self, directory: epath.PathLike) -> None:
        """Writes ``tokenizer.json`` and ``processor.json``, each whole or not at all."""
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "tokenizer"
        }
        text = json.dumps({"format": _FORMAT, **values}, indent=1, ensure_ascii=False)
        _write(directory / TOKENIZER_FILE, self.tokenizer.to_json())
        _write(directory / FILE, text + "\n")

    @classmethod
    def load(cls, directory: epath.PathLike) -> Processor:
        """Reads what ``save`` wrote; a missing or damaged file is named."""
        path = epath.Path(directory) / FILE
        if not path.exists():
            raise MmflaxError(
                f"There is no {FILE} in {directory}; expected a workdir that a training run wrote."
            )
        tokenizer = Tokenizer.load(epath.Path(directory) / TOKENIZER_FILE)
        try:
            values = json.loads(path.read_text())
            found = values.pop("format")
            if found != _FORMAT:
                raise MmflaxError(f"format {found} is not {_FORMAT}")
            return cls(tokenizer=tokenizer, **values)
        except (MmflaxError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MmflaxError(f"{path} cannot be used: {error}.") from error

    def _captions(self, raws: Sequence[Raw]) -> Batch:
        """An example without a caption gets an all-false mask."""
        tokens = np.zeros((len(raws), self.caption_length), np.int32)
        mask = np.zeros((len(raws), self.caption_length), bool)
        for row, raw in enumerate(raws):
            if raw.get("caption"):
                tokens[row], mask[row] = self.tokenizer.encode(raw["caption"], self.caption_length)
        return {"caption": tokens, "caption_mask": mask}

    @functools.cached_property
    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        return transforms.affine(self.mean, self.std, self.image_size)

    @functools.cached_property
    def _labels(self) -> dict[str, int]:
        return {answer: index for index, answer in enumerate(self.answers)}

    @functools.cached_property
    def _types(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.question_types)}


def _write(path: epath.Path, text: str) -> None:
    # Renaming is what makes it whole: a reader sees the old file or the new one.
    temporary = path.parent / f".{path.name}.partial"
    temporary.write_text(text)
    temporary.replace(path)
