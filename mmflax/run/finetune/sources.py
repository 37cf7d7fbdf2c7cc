"""The sources of a fine-tuning, unread, and what each has."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from mmflax.config.sections import PARTS
from mmflax.errors import MmflaxError
from mmflax.pretrained.inspect import inspect
from mmflax.run.finetune.parts import Sizes, sizes_of
from mmflax.run.finetune.recipes import NEW_FUSION, OTHER, PAIR, RECIPES, Recipe
from mmflax.run.former import is_run
from mmflax.run.init_sources import Opened, Source, opened, sources
from mmflax.run.workdir import read_config

RUN = "run"  # the family of a source that is a workdir
ENCODERS = PARTS[:2]
# A text encoder for an image encoder that comes alone.
NEW_TEXT: dict[str, Any] = dict(name="bert", width=256, depth=4, num_heads=4, dropout_rate=0.1)


@dataclasses.dataclass(frozen=True)
class Found:
    """A source, unread.

    Attributes:
      family: that reads it; "run" for a workdir.
      opened: its parameters, its modules and its preprocessing.
      config: of a workdir.
    """

    source: Source
    family: str
    opened: Opened
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.source)

    @property
    def modules(self) -> Mapping[str, Any]:
        return {} if self.opened.model is None else self.opened.model.modules

    @property
    def tops(self) -> set[str]:
        """First names of its parameters' paths."""
        return {name.split("/")[0] for name in self.opened.parameters}

    def has(self, part: str) -> bool:
        """Whether it has a part, or parameters below it, as ``fusion/type_embedding``."""
        inside = any(name.startswith(f"{part}/") for name in self.opened.parameters)
        return inside and part.split("/")[0] in self.modules


@dataclasses.dataclass
class Choice:
    """A config that is being written, and what decides it.

    Attributes:
      config: of the run, whose sections are replaced one by one.
      found: part -> the source that has it.
      dtype: of computation, None for the parameters' own.
      new: parts that start at random.
      notes: sentences on what was decided otherwise than in the checkpoint.
      keeps_decoder: the task writes with the checkpoint's own decoder.
    """

    config: dict[str, Any]
    found: Mapping[str, Found]
    dtype: str | None
    new: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    keeps_decoder: bool = False

    @property
    def task(self) -> str:
        """The task of the data: entailment, where the model's is matching."""
        named = (self.config.get("data") or {}).get("task") or self.config["task"].get("name")
        return str(named)

    @property
    def image(self) -> Found:
        return self.found["image_encoder"]

    @property
    def text(self) -> Found | None:
        return self.found.get("text_encoder")

    @property
    def writer(self) -> Found | None:
        """The checkpoint that has a decoder, where the task writes."""
        one = self.image
        writes = self.config["task"].get("name") == "generation"
        return one if writes and one.has("decoder") else None

    @property
    def of_images_alone(self) -> bool:
        """Whether a decoder that read images alone goes on with that, and no text is read."""
        writer = self.writer
        return self.task == "captioning" and writer is not None and self.text is None

    @property
    def encoder(self) -> Any:
        """The checkpoint's image encoder."""
        return self.image.modules["image_encoder"]

    @property
    def text_sizes(self) -> Sizes:
        """Of the text encoder, or of the one that is made where there is none."""
        sizes = None if self.text is None else sizes_of(self.text.modules["text_encoder"])
        return sizes or Sizes(*(NEW_TEXT[key] for key in Sizes._fields))

    @property
    def is_pair(self) -> bool:
        """Whether a published pair of encoders goes on being compared as it was trained."""
        pair = self.image is self.text and "fusion" not in self.found
        return pair and self.config["task"].get("name") == "retrieval"

    @property
    def builds_fusion(self) -> bool:
        """Whether the run has parameters of a fusion."""
        task = self.config["task"]
        return task.get("name") != "retrieval" or bool(task.get("fused"))

    @property
    def two_images(self) -> bool:
        task = self.config["task"]
        return task.get("name") == "reasoning" and task.get("images", 2) == 2

    @property
    def recipe(self) -> Recipe:
        fusion = self.found.get("fusion")
        if fusion is not None and "fusion" not in self.new:
            return RECIPES.get(fusion.family, OTHER)
        return PAIR if self.is_pair else NEW_FUSION


def find(config: dict[str, Any], new_fusion: bool = False) -> dict[str, Found]:
    """part -> the source that has it; ``config.init`` is rewritten if it names several in one.

    The layers of a text encoder that reads the image (BLIP's) are the fusion, but for a pair that
    is compared, and unless `new_fusion` or the config puts another on top.
    """
    found = _found(config)
    fusion = ((config.get("model") or {}).get("fusion") or {}).get("name", "auto")
    paired = (config.get("task") or {}).get("name") == "retrieval"
    image, text = (found.get(part) for part in ENCODERS)
    if text is None or image is not text or paired or new_fusion or fusion != "auto":
        return found
    parted = dataclasses.replace(text, opened=text.opened.parted())
    own = {part: parted if one is text else one for part, one in found.items()}
    return {**own, "fusion": parted} if parted.has("fusion") else found


def _found(config: dict[str, Any]) -> dict[str, Found]:
    init = dict(config.get("init") or {})
    names = several(init.get("from"))
    if names:
        init.pop("from")
        many = [open_source(Source(name, init.get("family") or None)) for name in names]
        # One that has nothing else is meant where several have the part.
        many.sort(key=lambda one: sum(one.has(part) for part in PARTS))
        found = {part: one for part in PARTS for one in reversed(many) if one.has(part)}
        if "fusion" in found and any(
            found[p] is not found["fusion"] for p in ENCODERS if p in found
        ):
            del found["fusion"]  # it belongs to the encoders that it was trained with
        for part, one in found.items():
            init[part] = {"from": one.source.path}
        idle = [str(one) for one in many if one not in found.values()]
        if idle:
            raise MmflaxError(
                f"init.from names {' and '.join(names)}, and nothing is left to take from "
                f"{idle[0]}; name one that reads images and one that reads texts."
            )
        config["init"] = init
        return _seeing(found)
    wanted = sources(init)
    if not wanted:
        raise MmflaxError(
            "This config starts from a checkpoint, and init.from names none; give a hub id, a "
            "folder, a file or a workdir: --config.init.from=SOURCE (or an image and a text "
            "encoder: --config.init.from=VIT,BERT)."
        )
    each = {source: open_source(source) for source in dict.fromkeys(wanted.values())}
    found = {}
    for part in PARTS:
        source = wanted.get(part, wanted.get("model"))
        if source is not None and each[source].has(part):
            found[part] = each[source]
        elif part in wanted:
            raise MmflaxError(f"init.{part}.from is {source}, which has no {part}; name another.")
    config["init"] = init
    return _seeing(found)


def _seeing(found: dict[str, Found]) -> dict[str, Found]:
    """The same; raises unless there is an image encoder among them."""
    if "image_encoder" in found:
        return found
    if "text_encoder" not in found:
        raise MmflaxError(
            "init names a checkpoint that has neither an image encoder nor a text encoder; name "
            "one that reads images and texts."
        )
    text = found["text_encoder"]
    raise MmflaxError(
        f"{text} reads texts and no images; name an image encoder's checkpoint before it, such as "
        f"--config.init.from=google/vit-base-patch16-224,{text}."
    )


def several(text: Any) -> list[str]:
    """The sources of ``A,B``; none where it is one."""
    if not isinstance(text, str) or "," not in text or os.path.exists(os.path.expanduser(text)):
        return []
    return [one.strip() for one in text.split(",") if one.strip()]


def open_source(source: Source) -> Found:
    root = pathlib.Path(source.path).expanduser()
    if is_run(root):
        return Found(source, RUN, opened(source), read_config(root))
    return Found(source, inspect(source.path, family=source.family).family, opened(source))
