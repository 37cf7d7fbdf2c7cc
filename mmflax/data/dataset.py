"""Random-access datasets: what the pipeline reads, before any decoding.

A *raw example* is a dict; what a dataset does not have is left out. Sources stay undecoded so that
walking over every text of a dataset costs no image work.

=============  ====================================================================================
image          PIL image, encoded bytes, path, or uint8 array; None = there is no image
regions        a detector's features float32 [n f] of n regions; may stand in place of ``image``
boxes          where each of them is [n 4]: x1 y1 x2 y2 in shares of the image
region_labels  optional, the detector's class probabilities [n k], or its classes int [n]
second_…       ``second_image``, ``second_regions`` …: the other image of a pair
question       the text the model reads: question, statement, caption, source sentence; None = none
answer         the class as text; None = unknown
answers        every annotator's answer (ten in VQAv2)
target         the text to be generated, in training
references     the texts that a generated one is compared with
caption        a caption of the image, for auxiliary objectives
question_type  by which metrics are also reported
image_id       equal for two examples exactly if they show the same image
group          examples that are judged together
id             names the example within its split
=============  ====================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from mmflax.batch_keys import PREFIXES
from mmflax.data.contents import Origin
from mmflax.errors import MmflaxError

Raw = dict[str, Any]
_SHOWN = ("image", "regions", "boxes", "region_labels")
IMAGES = tuple(prefix + "image" for prefix in PREFIXES)
# What shows an image; nothing of it is needed to judge an answer.
PICTURES = tuple(prefix + key for prefix in PREFIXES for key in _SHOWN)


def showing(image: Any, prefix: str = "") -> Raw:
    """The keys of a raw example that show this image, given as ``image`` or, where a detector's
    regions stand for it, as a dict of ``regions``, ``boxes`` …"""
    given = image if isinstance(image, Mapping) else {"image": image}
    return {prefix + key: value for key, value in given.items()}


def select_image(raw: Mapping[str, Any]) -> Any:
    """What ``showing`` takes: the image, or the dict of a detector's regions."""
    if raw.get("regions") is None:
        return raw.get("image")
    return {key: raw[key] for key in _SHOWN if raw.get(key) is not None}


def has_image(raw: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether pixels or regions show the image."""
    return any(raw.get(prefix + key) is not None for key in ("image", "regions"))


class Source(Protocol):
    """Random access to raw examples; ``index`` is in ``0..len-1`` and threads may read at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Raw: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Named splits and what is known about them.

    Attributes:
      info: goes into ``run.json``.
      origin: what the splits are made of, where the data set can tell; see `Origin`.
    """

    name: str
    splits: Mapping[str, Source]
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    origin: Origin | None = None

    def source(self, split: str) -> Source:
        """The split's source; an unknown split lists those that exist."""
        if split not in self.splits:
            raise MmflaxError(
                f"The dataset {self.name!r} has no split {split!r}; it has "
                f"{', '.join(self.splits) or 'none'}{self._why_not(split)}."
            )
        return self.splits[split]

    def _why_not(self, split: str) -> str:
        """What ``info`` says about the absence of a split."""
        return f" ({self.info[f'no_{split}']})" if f"no_{split}" in self.info else ""

    def describe(self) -> str:
        """One line a split: its size and its first question with the answer."""
        lines = [f"{self.name}"]
        for split, source in self.splits.items():
            line = f"  {split}: {len(source)} examples"
            if len(source):
                first = source[0]
                result = first.get("answer") or first.get("target")
                line += f", e.g. {first.get('question')!r} -> {result!r}"
            lines.append(line)
        lines += [f"  {key}: {value}" for key, value in self.info.items()]
        return "\n".join(lines)


class Subset:
    """The examples of ``source`` at ``indices``, in that order.

    Args:
      source: the examples.
      indices: which of them.
      whole: of how many examples these are a sample; by default they are all that is meant.
    """

    def __init__(self, source: Source, indices: Sequence[int], whole: int | None = None):
        self._source = source
        self._indices = indices
        self.whole = len(indices) if whole is None else whole

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int, /) -> Raw:
        return self._source[int(self._indices[index])]

    def without_images(self, index: int) -> Raw:
        """See ``text_of``."""
        return text_of(self._source, int(self._indices[index]))


def spaced(source: Source, limit: int) -> Source:
    """At most `limit` examples, evenly spaced, so that every type of them is among these."""
    if limit >= len(source):
        return source
    places = np.linspace(0, len(source) - 1, limit).round().astype(int).tolist()
    return Subset(source, places, whole=len(source))


def whole_of(source: Source) -> int:
    """How many examples the split has that these are, or are a sample of."""
    return int(getattr(source, "whole", len(source)))


def text_of(source: Source, index: int) -> Raw:
    """The example for a reader of its texts: ``b""`` may stand for an image that is there.

    A source on disk has a method ``without_images(index)`` that leaves the image unread; of any
    other the whole example is returned.
    """
    without_images = getattr(source, "without_images", None)
    raw: Raw = source[index] if without_images is None else without_images(index)
    return raw


def in_memory(splits: Mapping[str, Sequence[Raw]], *, name: str = "in_memory") -> Dataset:
    """A dataset from lists of raw examples; fills in a missing ``id`` and ``question_type``.

    Raises:
      MmflaxError: an example without the key image (or regions) or question, named by split and
        position.
    """
    filled: dict[str, Source] = {}
    for split, examples in splits.items():
        rows: list[Raw] = []
        for index, example in enumerate(examples):
            needed = ("question",) if "regions" in example else ("image", "question")
            missing = [key for key in needed if key not in example]
            if missing:
                raise MmflaxError(
                    f"Example {index} of split {split!r} has no {' and no '.join(missing)}; "
                    "every example needs both; None says that one is absent."
                )
            rows.append({"id": f"{split}:{index}", "question_type": "all", **example})
        filled[split] = rows
    return Dataset(name=name, splits=filled)
