"""What a processor is made of: its fields, their checks, and the files that keep them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from typing import Self

from etils import epath

from mmflax.data import answers
from mmflax.data.image import transforms
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.files import write_file

FILE = "processor.json"
TOKENIZER_FILE = "tokenizer.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessorFields:
    """How an example becomes arrays; ``Processor`` does it.

    Attributes:
      image_size: pixels a side; 0 where the data have regions and no images.
      mean, std: of pixels in 0..1, for each of R, G, B.
      resize: ``squash`` to the square, ``crop`` its middle after resizing the short side, or
        ``divisible``: that with both sides a multiple of 32 in between (BridgeTower).
      resize_to: pixels that the side is first resized to, before the middle is cut to
        ``image_size``; 0 is ``image_size`` itself.
      floor_crop: an odd pixel is cut on the right and below, as published models have it.
      filter: PIL's resampling filter: nearest, box, bilinear, bicubic or lanczos.
      draft: decode large JPEGs at 1/2, 1/4 or 1/8 size (never below ``image_size``); several times
        faster, and a little different from decoding every pixel: turn it off for exact parity.
      reads_text: some training example had a text, such as a question.
      reads_image: some training example had an image or regions.
      max_length: tokens of a question with ``[CLS]`` and ``[SEP]``.
      caption_length: tokens of a caption, for objectives that read one; 0 leaves captions out.
      target_length: tokens of a text to be generated; 0 leaves targets out.
      soft_answers: give ``answer_scores``, the share of annotators behind each answer.
      normalize_answers: when two spellings are one answer: ``vqa``, as the official evaluation
        normalizes them; ``case``, but for letter case and blanks; ``off``, as they are written. A
        file without it is of a run that compared labels as they were written, and normalized the
        annotators' answers of ``soft_answers`` alone (``annotators``).
      absent_images: examples may come without an image; ``image_present`` is then given.
      second_images: every example has a second image.
      num_regions: regions of an image, of a detector, at most; 0 leaves them out.
      region_dim: numbers of each region's feature.
      region_classes: classes of the detector, for objectives that predict them; 0 leaves them out.
      image_keys: give ``image_key``, equal for examples of the same image.
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
    resize_to: int = 0
    floor_crop: bool = False
    draft: bool = True
    caption_length: int = 0
    target_length: int = 0
    soft_answers: bool = False
    normalize_answers: str = "annotators"
    absent_images: bool = False
    second_images: bool = False
    num_regions: int = 0
    region_dim: int = 0
    region_classes: int = 0
    image_keys: bool = False
    reads_text: bool = True
    reads_image: bool = True

    def __post_init__(self) -> None:
        for name in ("mean", "std", "answers", "question_types"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, value, choices in (
            ("resize", self.resize, transforms.RESIZES),
            ("filter", self.filter, tuple(transforms.FILTERS)),
            ("normalize_answers", self.normalize_answers, tuple(answers.FORMS)),
        ):
            if value not in choices:
                raise MmflaxError(f"{name} is {value!r}; choose one of {', '.join(choices)}.")
        if self.num_regions < 0 or (self.num_regions and self.region_dim < 1):
            raise MmflaxError(
                f"num_regions is {self.num_regions} and region_dim {self.region_dim}; expected "
                "regions of at least one number each, or num_regions=0 without any."
            )
        if self.image_size < (0 if self.num_regions else 1):
            raise MmflaxError(f"image_size is {self.image_size}; it must be at least 1 pixel.")
        if self.resize_to < 0:
            raise MmflaxError(f"resize_to is {self.resize_to}; it must be 0 (image_size) or more.")
        if self.max_length < 3:
            raise MmflaxError(
                f"max_length is {self.max_length}; it must be at least 3: [CLS], a token, [SEP]."
            )
        for name in ("caption_length", "target_length"):
            length = getattr(self, name)
            if length != 0 and length < 3:
                raise MmflaxError(f"{name} is {length}; it must be 0 (none) or at least 3.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise MmflaxError(
                f"mean {self.mean} and std {self.std} must be three numbers each, std above 0."
            )
        for name in ("answers", "question_types"):
            twice = [value for value, n in Counter(getattr(self, name)).items() if n > 1]
            if twice:
                raise MmflaxError(f"{name} lists {twice[0]!r} twice; indices would be ambiguous.")

    def save(self, directory: epath.PathLike) -> None:
        """Writes ``tokenizer.json`` and ``processor.json``, each whole or not at all.

        A published tokenizer also has a ``tokenizer_config.json``.
        """
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "tokenizer"
        }
        text = json.dumps({"format": _FORMAT, **values}, indent=1, ensure_ascii=False)
        for name, contents in self.tokenizer.files().items():
            write_file(directory / name, contents)
        write_file(directory / FILE, text + "\n")

    @classmethod
    def load(cls, directory: epath.PathLike) -> Self:
        """Reads what ``save`` wrote; a missing or damaged file is named."""
        path = epath.Path(directory) / FILE
        if not path.exists():
            raise MmflaxError(
                f"There is no {FILE} in {directory}; expected a workdir that a training run wrote."
            )
        tokenizer = Tokenizer.load(epath.Path(directory) / TOKENIZER_FILE)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("format")
            if version != _FORMAT:
                raise MmflaxError(f"format {version} is not {_FORMAT}")
            return cls(tokenizer=tokenizer, **values)
        except (MmflaxError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise MmflaxError(f"{path} cannot be used: {error}.") from error
