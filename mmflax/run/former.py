"""A former run as a source for another, and the preprocessing that ``processor.from`` names."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from mmflax.data.processor import Processor
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.pretrained.processor import PublishedProcessor

_IMAGES = ("image_size", "resize", "resize_to", "floor_crop", "filter", "mean", "std", "draft")


def is_run(source: str | os.PathLike[str]) -> bool:
    """Whether it is a folder that `mmflax train` wrote."""
    return (pathlib.Path(source).expanduser() / "checkpoints").is_dir()


@dataclasses.dataclass(frozen=True)
class FormerProcessor:
    """A run's tokenizer and what it does to images, for another run that goes on from its weights.

    Answers, lengths and question types are the new run's own.
    """

    processor: Processor

    @property
    def tokenizer(self) -> Tokenizer:
        return self.processor.tokenizer

    def image_fields(self) -> dict[str, Any]:
        """Keywords of a `Processor` that does the same to images; none where it reads none."""
        if not self.processor.image_size:
            return {}
        return {name: getattr(self.processor, name) for name in _IMAGES}


def preprocessing_of(source: str) -> PublishedProcessor | FormerProcessor:
    """What `source` is: the workdir of a run, or a published checkpoint."""
    if is_run(source):
        return FormerProcessor(Processor.load(pathlib.Path(source).expanduser()))
    return PublishedProcessor.of_checkpoint(source)
