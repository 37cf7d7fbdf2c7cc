"""The sizes of data that need not be there, for planning: published ones, or ``plan.shapes``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmflax.batch_keys import SECOND
from mmflax.config import schema
from mmflax.config.sections import PlanShapes
from mmflax.data.dataset import Dataset
from mmflax.data.facts import Facts
from mmflax.data.processor import Processor
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_PICTURES = {"coco": (640, 480), "flickr30k": (500, 375), "nlvr": (400, 100)}  # typical, in pixels
_VQA = dict(examples=443_757, evaluated=214_354, answers=3_129, max_length=40)
_COCO = dict(examples=566_747, evaluated=25_010)
_FLICKR = dict(examples=145_000, evaluated=5_070)
# (data.name, data.task or ""): sizes of the train split, from the pages and papers that the modules
# of `mmflax.data.datasets.public` name. VQAv2's answers are those of Teney et al. 2018 (9 or more
# times in train and validation); lengths are those customary for BERT's word pieces.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("vqa_v2", ""): dict(question_types=3, **_VQA),
    ("coco_captions", ""): dict(max_length=3, target_length=40, **_COCO),
    ("coco_captions", "retrieval"): dict(max_length=40, **_COCO),
    ("flickr30k", ""): dict(max_length=3, target_length=40, **_FLICKR),
    ("flickr30k", "retrieval"): dict(max_length=40, **_FLICKR),
    ("nlvr2", ""): dict(
        examples=86_373, evaluated=6_982, answers=2, max_length=48, second_images=True
    ),
    ("nlvr", ""): dict(examples=74_460, evaluated=5_940, answers=2, max_length=48),
    ("snli_ve", ""): dict(examples=529_527, evaluated=17_858, answers=3, max_length=48),
}


def shapes_of(config: Mapping[str, Any]) -> PlanShapes | None:
    """The sizes to plan with, or None where the data are to be read.

    ``plan.shapes`` goes before what is published of the data set.
    """
    given = {key: value for key, value in schema.at(config, "plan.shapes").items()}
    data = config["data"]
    name = str(data.get("name"))
    tasks = [task for known, task in PUBLISHED if known == name]
    task = str(data.get("task") or "")
    if name not in {known for known, _ in PUBLISHED} and not given:
        return None
    published = PUBLISHED.get((name, task if task in tasks else ""), {})
    asked = {key: value for key, value in given.items() if value is not None}
    return PlanShapes.read({**published, **asked})


def processor_of(experiment: Experiment, shapes: PlanShapes) -> Processor:
    """A processor whose batches have these sizes; its words and answers are made up."""
    wants_regions = experiment.reads_regions
    regions = {"regions": np.zeros((1, 1), np.float32), "boxes": np.zeros((1, 4), np.float32)}
    seen: dict[str, Any] = regions if wants_regions else {"image": np.zeros((8, 8, 3), np.uint8)}
    if shapes.second_images:
        seen = seen | {f"{SECOND}{key}": value for key, value in seen.items()}
    count = len(str(shapes.answers or 0))
    answers = [f"answer {index:0{count}}" for index in range(shapes.answers or 0)]
    positive = experiment.config["task"].get("positive")
    if isinstance(positive, str) and answers:
        answers[0] = positive
    row = {**seen, "question": "word", "caption": "word", "target": "word", "id": "0"}
    if shapes.image_keys is not False:
        row["image_id"] = "0"
    if answers:
        least = experiment.config["processor"].get("min_answer_count", 1)
        rows = [row | {"answer": answers[0], "answers": [answers[0]]}] * int(least)
    else:
        rows = [row]
    learned = experiment.learn_processor(Dataset("planned", {"train": rows}))
    changes: dict[str, Any] = {
        "answers": tuple(answers),
        "question_types": _named("type", shapes.question_types or 1),
        "target_length": _target_length(experiment, shapes),
    }
    if not experiment.published:
        size = shapes.vocab_size or experiment.config["processor"].get("vocab_size", 8192)
        words = _named("word", size - len(_SPECIAL))
        changes["tokenizer"] = Tokenizer.from_vocabulary([*_SPECIAL, *words])
    if "max_length" in _given(experiment) or (
        experiment.config["processor"].get("max_length") is None
        and not learned.tokenizer.reads_padding
    ):
        changes["max_length"] = shapes.max_length or 40
    if shapes.absent_images:
        changes["absent_images"] = True
    if wants_regions:
        changes |= dict(
            num_regions=shapes.num_regions or 36,
            region_dim=shapes.region_dim or 2048,
            region_classes=shapes.region_classes or 0,
        )
    return dataclasses.replace(learned, **changes)


def facts_of(experiment: Experiment, shapes: PlanShapes) -> Facts:
    """What a recipe needs to know of data of these sizes, for values that are ``auto``."""
    examples = examples_of(shapes, "the values that are 'auto'")
    name = str(experiment.config["data"].get("name"))
    kind = next((key for key in _PICTURES if name.startswith(key)), "coco")
    return Facts(
        task=str(experiment.config["task"].get("name")),
        examples=examples,
        evaluated=_evaluated(shapes),
        pictures=examples,
        sizes=() if experiment.reads_regions else (_PICTURES[kind],),
        answers=shapes.answers or 0,
        words=shapes.max_length or 40,
    )


def examples_of(shapes: PlanShapes, wanted_for: str) -> int:
    """Of the train split.

    Raises:
      MmflaxError: they are not known.
    """
    if shapes.examples is None:
        raise MmflaxError(
            f"The number of training examples is not known, and {wanted_for} depend on it; give "
            "--config.plan.shapes.examples=100000, say."
        )
    return shapes.examples


def _evaluated(shapes: PlanShapes) -> int:
    return (shapes.examples or 0) // 10 if shapes.evaluated is None else shapes.evaluated


def _target_length(experiment: Experiment, shapes: PlanShapes) -> int:
    """What the user says, then the config, then what is published."""
    if "target_length" in _given(experiment):
        return int(shapes.target_length or 0)
    return int(experiment.config["processor"].get("target_length") or shapes.target_length or 0)


def _given(experiment: Experiment) -> Mapping[str, Any]:
    return schema.at(experiment.config, "plan.shapes")


def _named(word: str, count: int) -> tuple[str, ...]:
    digits = len(str(count))
    return tuple(f"{word}{index:0{digits}}" for index in range(count))
