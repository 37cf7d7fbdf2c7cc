"""``folder``: your own images and texts, in the Hugging Face ``imagefolder`` layout.

::

    my_data/train/metadata.jsonl       one JSON object a line: file_name, question, answer
    my_data/train/cat.jpg              file_name is relative to the metadata file
    my_data/validation/metadata.jsonl  optional: held out of train, by image, when absent
    my_data/test/metadata.jsonl        optional

``metadata.csv`` and ``metadata.parquet`` with the same columns work too, one such file may stand in
``my_data`` for all splits, and images alone may lie in folders named like their classes. Other
tasks have other columns (``LAYOUTS`` in ``folder.columns``; docs/data.md has them in a table). A
column ``question_type`` is optional and splits the metrics by its values; further columns are
ignored. An image may have many rows. ``regions`` (of a second image ``regions_2``) names a file of
what a detector found in the image, for models that read that: ``mmflax.data.region_files``.
"""

import difflib
import json
import os
import pathlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mmflax.data.answers import Form
from mmflax.data.contents import Contents, Origin
from mmflax.data.dataset import IMAGES, PICTURES, Dataset, Raw, text_of
from mmflax.data.datasets.folder.columns import LAYOUTS, answer_form
from mmflax.data.datasets.folder.files import read_splits
from mmflax.data.datasets.folder.regions import lazily
from mmflax.data.datasets.folder.splits import (
    before_names,
    check_leaks,
    check_repeats,
    contents_of,
    expand,
    held_names,
    hold_out,
    hold_out_again,
    images_of,
    line_of,
    relative,
    sha256,
)  # fmt: skip
from mmflax.data.datasets.folder.tables import METADATA
from mmflax.data.image.bad_images import or_tolerate
from mmflax.errors import MmflaxError


def build(
    *,
    path: str | os.PathLike[str],
    task: str | None = None,
    validation_fraction: float = 0.1,
    unseen_answers: str = "error",
    allow_repeats: bool = False,
    allow_leak: bool | None = None,
    unit: str | None = None,
    max_bad_fraction: float = 0.0,
    normalize_answers: str | None = None,
    reads_regions: bool | None = None,
    held_out: Collection[str] | None = None,
    former_path: str | None = None,
) -> Dataset:
    """Reads and checks every row and every image's header, before any training starts.

    Args:
      path: the folder that holds ``train/``.
      task: vqa, captioning, retrieval, matching, entailment, reasoning, classification or
        translation; None is read off the columns of the first row (captions mean captioning).
      validation_fraction: of the training images, held out when there is no ``validation/``: always
        the same images for the same file names, never the last one with some answer; 0 holds out
        none.
      unseen_answers: an answer in validation or test that train lacks is an ``error``, or counts as
        ``wrong``.
      allow_repeats: whether the same row may stand in a split twice; in vqa it always may.
      allow_leak: whether an image may be in two splits, under the same name or as a copy with the
        same bytes. None forbids it, except in vqa, where ``info`` counts them.
      unit: for captions, an example for each ``caption`` or each ``image``; None is the first in
        train and for retrieval, else the second.
      max_bad_fraction: the pipeline's; at 0 an image whose header cannot be read is an error here,
        above 0 the pipeline counts and names those that cannot be read. An image that is not there
        is an error all the same.
      normalize_answers: the processor's: when two spellings are one answer; None is "vqa" in vqa,
        else "case".
      reads_regions: the image encoder's: of a row with an image and a file of its regions, True
        takes the file, False the image, None both.
      held_out: names inside the folder of the images to hold out, as a run did before; None draws
        them.
      former_path: the path of a run that drew them by it; see `hold_out`.

    Raises:
      MmflaxError: naming the file and the line.
    """
    if unseen_answers not in ("error", "wrong"):
        raise MmflaxError(f"unseen_answers is {unseen_answers!r}; choose 'error' or 'wrong'.")
    if task is not None and task not in LAYOUTS:
        raise MmflaxError(f"task is {task!r}; choose one of {', '.join(LAYOUTS)}, or None.")
    if unit not in (None, "caption", "image"):
        raise MmflaxError(f"unit is {unit!r}; choose 'caption', 'image' or None.")
    if not 0 <= validation_fraction < 1:
        raise MmflaxError(
            f"validation_fraction is {validation_fraction}; it must be at least 0 and below 1."
        )
    if not os.fspath(path):
        raise MmflaxError(
            "data.path is empty; name your folder, as in --config configs/folder.py:vqa:DIR."
        )
    root = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
    if root.is_file():
        raise MmflaxError(f"data.path is the file {root}; give a folder (unpack an archive).")
    if not root.is_dir():
        raise MmflaxError(
            f"There is no folder {root}; expected one that holds train/{METADATA[0]}. If it was "
            "moved, give --config.data.path=DIR."
        )
    task, splits, unreadable = read_splits(
        root, task, normalize_answers=normalize_answers, reads_regions=reads_regions
    )
    form = answer_form(task, normalize_answers)
    _check_answers(splits, unseen_answers, form)
    if task != "vqa" and not allow_repeats:
        check_repeats(splits)
    may_leak = task == "vqa" if allow_leak is None else allow_leak
    stored = dict(splits)
    taken: list[Raw] = []
    if "validation" not in splits and validation_fraction:
        if held_out is None:
            train, taken = hold_out(
                root,
                splits["train"],
                validation_fraction,
                form,
                former_path,
                copies_apart=may_leak or former_path is not None,
            )
        else:
            train, taken = hold_out_again(root, splits["train"], held_out)
        if taken:
            splits = {"train": train, "validation": taken} | {
                split: rows for split, rows in splits.items() if split != "train"
            }
    held = tuple(sorted({name for row in taken for name in held_names(root, row)}))
    shared = check_leaks(splits, allowed=may_leak)
    splits = {name: expand(task, name, rows, unit) for name, rows in splits.items()}
    if unreadable and not max_bad_fraction:
        raise MmflaxError(_what_to_do(unreadable, splits))
    sources = {name: lazily(rows) for name, rows in splits.items()}
    info: dict[str, Any] = {"path": str(root), "sha256": _digest(root, splits), "task": task}
    if validation_fraction and "validation" not in splits:
        info["no_validation"] = (
            "nothing can be held out of train, since every image is the only one, is a copy of or "
            "shares a group with all others, or is the last with some answer; add validation/, or "
            "examples"
        )
    if shared:
        info["images_in_two_splits"] = shared

    def contents() -> dict[str, Contents]:
        return {split: contents_of(root, rows) for split, rows in stored.items()}

    return Dataset("folder", sources, info, Origin(contents, held))


def _what_to_do(unreadable: Mapping[str, str], splits: Mapping[str, list[Raw]]) -> str:
    """The first image that cannot be read, and the share that leaves out all of them.

    They are a share of a split's examples, or of its images, which retrieval's evaluation counts.
    """
    counts: list[tuple[int, int]] = []
    for rows in splits.values():
        images = {image for row in rows for image in images_of(row)}
        bad = sum(any(image in unreadable for image in images_of(row)) for row in rows)
        counts += [(bad, len(rows)), (len(images & unreadable.keys()), len(images) or 1)]
    share = or_tolerate(counts)
    share = share and f"{share}, the share of examples that may be left out"
    others = f" (and {len(unreadable) - 1} more)" if len(unreadable) > 1 else ""
    return f"{next(iter(unreadable.values())).rstrip('.')}{others}{share}."


def _check_answers(splits: dict[str, list[Raw]], unseen_answers: str, form: Form) -> None:
    if unseen_answers == "wrong":
        return
    seen = {row["answer"] for row in splits["train"] if "answer" in row}
    forms = set(map(form, seen))
    for split, rows in splits.items():
        for row in rows:
            if "answer" in row and form(row["answer"]) not in forms:
                near = difflib.get_close_matches(row["answer"], sorted(seen), n=1)
                raise MmflaxError(
                    f"{line_of(row['id'])}: the answer {row['answer']!r} does not occur in train"
                    f"{f' (nearest: {near[0]!r})' if near else ''}, so no model can give it; "
                    f"correct it, or set --config.data.unseen_answers=wrong to count it as wrong "
                    f"in {split}."
                )


def former_digest(dataset: Dataset, former_path: str) -> str:
    """What ``sha256`` was when names had the path of the folder before them, as it was written."""
    root = pathlib.Path(dataset.info["path"])
    splits = {
        name: [_without_regions(text_of(rows, index)) for index in range(len(rows))]
        for name, rows in dataset.splits.items()
    }
    return _digest(root, splits, before_names(former_path))


def _without_regions(row: Raw) -> Raw:
    """Which no such run could read."""
    return {key: value for key, value in row.items() if key in IMAGES or key not in PICTURES}


def _digest(root: pathlib.Path, splits: Mapping[str, Iterable[Raw]], before: str = "") -> str:
    """Over the rows, not the pixels: shows that two runs had the same texts."""
    rows: list[list[Any]] = []
    for split, examples in splits.items():
        for row in examples:
            images = [row.get(key) for key in IMAGES]
            texts = [row.get(key) for key in ("question", "answer")]
            more = [row[key] for key in ("answers", "target", "references", "group") if key in row]
            first, *others = [image and before + relative(image, root) for image in images]
            others += [relative(path, root) for path in images_of(row) if path not in images]
            more += [name for name in others if name is not None]
            rows.append([split, first, *texts, *more])
    return sha256(json.dumps(rows))
