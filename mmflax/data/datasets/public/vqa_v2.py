"""``vqa_v2``: questions about COCO photographs with ten people's answers each.

Goyal et al. 2017, "Making the V in VQA Matter". Files and counts as on visualqa.org/download.html
(balanced real images): 443,757 training, 214,354 validation and 447,793 test questions; the answers
of the test splits are not public. ``answer`` is the published ``multiple_choice_answer``.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from mmflax.data.dataset import Dataset, Raw, Subset
from mmflax.data.datasets.public.prepare import Split, of_regions, prepare
from mmflax.data.datasets.public.prepared import PreparedSource
from mmflax.data.datasets.public.published import File, Found, Record, field, record
from mmflax.errors import MmflaxError

_SITE = "https://visualqa.org/download.html"
QUESTION_TYPES = ("answer_type", "question_type", "none")


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    question_type: str = "answer_type",
    partial: bool = False,
    regions: int = 0,
) -> Dataset:
    """Splits train and validation; test and test_dev if their questions are there.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/coco``. See docs/data.md.
      question_type: by what accuracy is also reported: ``answer_type`` ("yes/no", "number",
        "other"), ``question_type`` (first words, such as "how many"), or ``none``.
      partial: accept fewer questions than published, and leave out those without an image.
      regions: boxes of a detector (36 as LXMERT's authors publish them) in place of each image,
        which is not needed then; 0 = the images.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    if question_type not in QUESTION_TYPES:
        raise MmflaxError(
            f"question_type is {question_type!r}; choose one of {', '.join(QUESTION_TYPES)}."
        )

    def view(examples: list[Raw]) -> list[Raw]:
        return [_view(example, question_type) for example in examples]

    manifest = prepare(
        f"vqa_v2_obj{regions}" if regions else "vqa_v2",
        of_regions(_splits(), regions, "mscoco_imgfeat") if regions else _splits(),
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="coco",
        partial=partial,
        regions=regions,
    )
    splits: dict[str, Any] = {}
    for name, entry in manifest["splits"].items():
        splits[name] = PreparedSource(manifest["folder"], [entry], view=view)
        for marked, places in entry["marked"].items():
            splits[marked] = Subset(splits[name], places)
    return Dataset(
        "vqa_v2", splits, {"files": manifest["folder"], "left_out": manifest["left_out"]}
    )


def _view(example: Raw, question_type: str) -> Raw:
    types = {key: example.pop(key, "all") for key in ("answer_type", "question_type")}
    return {**example, "question_type": types.get(question_type, "all")}


def _splits() -> list[Split]:
    return [
        _split("train", "train2014", "Train", 443_757),
        _split("validation", "val2014", "Val", 214_354),
        Split(
            "test",
            (
                _questions("test2015", "Test"),
                _questions("test-dev2015", "Test"),
            ),
            (_images("test2015"),),
            _read_test,
            published=447_793,
            optional=True,
        ),
    ]


def _split(name: str, images: str, archive: str, published: int) -> Split:
    annotations = File(
        (f"v2_mscoco_{images}_annotations.json",), _SITE, f"v2_Annotations_{archive}_mscoco.zip"
    )
    return Split(
        name,
        (_questions(images, archive), annotations),
        (_images(images),),
        functools.partial(_read, folder=images),
        published,
    )


def _questions(images: str, archive: str) -> File:
    return File(
        (f"v2_OpenEnded_mscoco_{images}_questions.json",),
        _SITE,
        f"v2_Questions_{archive}_mscoco.zip",
    )


def _images(folder: str) -> File:
    return File((folder,), "https://cocodataset.org/#download", f"{folder}.zip")


def _read(files: Sequence[Found], folder: str) -> Iterator[Record]:
    questions, annotations = files
    answers: dict[int, dict[str, Any]] = {}
    found = annotations.json(hook=_answer)
    for entry in field(annotations, found, "annotations", list):
        question_id = field(annotations, entry, "question_id", int)
        if question_id in answers:
            raise MmflaxError(f"{annotations}: question_id {question_id} is annotated twice.")
        answers[question_id] = entry
    by_image: dict[int, list[Raw]] = {}
    for question_id, image, text in _asked(questions):
        entry = answers.pop(question_id, {})
        where = f"{annotations}: question_id {question_id}"
        if entry.get("image_id") != image:
            raise MmflaxError(
                f"{where} is {'about another image' if entry else 'missing'}, though it is asked "
                f"in {questions}; download both files again."
            )
        by_image.setdefault(image, []).append(
            {
                "id": str(question_id),
                "image_id": str(image),
                "question": text,
                "answer": field(where, entry, "multiple_choice_answer", str),
                "answers": field(where, entry, "answers", list),
                "answer_type": field(where, entry, "answer_type", str),
                "question_type": field(where, entry, "question_type", str),
            }
        )
    if answers:
        raise MmflaxError(
            f"{annotations}: question_id {next(iter(answers))} is annotated, but not asked in "
            f"{questions}; download both files again."
        )
    for image, examples in by_image.items():
        yield record([f"COCO_{folder}_{image:012d}.jpg"], examples)


def _read_test(files: Sequence[Found]) -> Iterator[Record]:
    """All test questions; those of test-dev, a part of them, are marked."""
    everything, development = files
    marked = {question_id for question_id, _, _ in _asked(development)}
    by_image: dict[int, list[Raw]] = {}
    for question_id, image, text in _asked(everything):
        example = {"id": str(question_id), "image_id": str(image), "question": text}
        by_image.setdefault(image, []).append(example)
    unknown = marked - {int(e["id"]) for examples in by_image.values() for e in examples}
    if unknown:
        raise MmflaxError(
            f"{development}: question_id {min(unknown)} is not in {everything}, of which it should "
            "be a part; download both files again."
        )
    for image, examples in by_image.items():
        marks = [("test_dev",) if int(example["id"]) in marked else () for example in examples]
        yield record([f"COCO_test2015_{image:012d}.jpg"], examples, marks)


def _asked(questions: Found) -> Iterator[tuple[int, int, str]]:
    """(question_id, image_id, question) of every entry."""
    for entry in field(questions, questions.json(), "questions", list):
        question_id = field(questions, entry, "question_id", int)
        where = f"{questions}: question_id {question_id}"
        yield (
            question_id,
            field(where, entry, "image_id", int),
            field(where, entry, "question", str).strip(),
        )


def _answer(entry: dict[str, Any]) -> Any:
    """One annotator's answer without its number and confidence: a tenth of the memory."""
    return sys.intern(str(entry.get("answer"))) if "answer_id" in entry else entry
