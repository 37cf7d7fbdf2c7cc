"""The metadata columns of each task, and the conversion of a row to a raw example."""

import ast
import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from mmflax.batch_keys import SECOND
from mmflax.data.answers import Form, form_of, grouped, same
from mmflax.data.dataset import Raw
from mmflax.errors import MmflaxError


class Column(NamedTuple):
    """A column of the metadata.

    Attributes:
      name: as in the file.
      plural: a column that may stand for it, whose values are lists.
      kind: ``text``, ``image``, ``regions`` (a detector's, of an image), or ``truth`` (true or
        false).
      absent: whether it may be null or empty.
      instead: another column that may stand in its place.
    """

    name: str
    plural: str = ""
    kind: str = "text"
    absent: bool = False
    instead: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The column and its plural."""
        return (self.name, self.plural) if self.plural else (self.name,)

    def replaced(self, entry: Mapping[str, Any]) -> bool:
        """Whether the row has the other column in its place."""
        return bool(self.instead) and entry.get(self.instead) is not None


class Layout(NamedTuple):
    """The columns of a task; ``key`` is the one that a task is recognized by."""

    key: str
    required: tuple[Column, ...]
    optional: tuple[Column, ...] = ()

    @property
    def columns(self) -> tuple[Column, ...]:
        """Required and optional columns."""
        regions = tuple(
            Column(column.instead, kind="regions", absent=True)
            for column in self.required
            if column.instead
        )
        return self.required + self.optional + regions + (QUESTION_TYPE,)


QUESTION_TYPE = Column("question_type")
_IMAGE = Column("file_name", kind="image", instead="regions")
_SECOND = Column("file_name_2", kind="image", instead="regions_2")
_MAYBE_IMAGE = Column("file_name", kind="image", absent=True, instead="regions")
_CAPTION = Column("caption", "captions")
# What others call the column of the image.
_IMAGE_NAMES = ("image", "img", "path", "file", "image_path", "img_path", "image_id")
_TRUTHS = {
    "true": "true",
    "1": "true",
    "false": "false",
    "0": "false",
}
_TRUTH = Column("label", kind="truth")

# In the order in which a row's columns are held against them.
LAYOUTS = {
    "vqa": Layout("question", (_IMAGE, Column("question"), Column("answer", "answers"))),
    "entailment": Layout("hypothesis", (_IMAGE, Column("hypothesis"), Column("label"))),
    "reasoning": Layout(
        "file_name_2", (_IMAGE, _SECOND, Column("statement"), _TRUTH), (Column("group"),)
    ),
    "matching": Layout("statement", (_IMAGE, Column("statement"), _TRUTH)),
    "translation": Layout("source", (_MAYBE_IMAGE, Column("source"), Column("target", "targets"))),
    "classification": Layout("text", (_MAYBE_IMAGE, Column("text", absent=True), Column("label"))),
    "captioning": Layout("caption", (_IMAGE, _CAPTION)),
    "retrieval": Layout("caption", (_IMAGE, _CAPTION)),
}


def renamed(where: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The row with ``file_name`` and ``file_name_2`` for the other names that ``imagefolder`` has:
    a list ``file_names``, or ``left_file_name`` and the like, in the order of the columns."""
    if "file_name" in entry:
        return dict(entry)
    own = dict(entry)
    named = [key for key in own if key.endswith("_file_name")]
    if own.get("file_names") is not None:
        names = _texts(where, "file_names", own.pop("file_names"))
    else:
        names = [own.pop(key) for key in named]
    if len(names) > 2:
        raise MmflaxError(
            f"{where}: the row names {len(names)} images ({', '.join(map(str, names))}); expected "
            "file_name, or file_name and file_name_2."
        )
    return {**dict(zip(("file_name", "file_name_2"), names, strict=False)), **own}


def infer(where: str, entry: Mapping[str, Any]) -> str:
    """The task of a row by its columns, or by the nearest name of a column."""
    if "text" in entry and not difflib.get_close_matches("label", map(str, entry), n=1):
        return "captioning"
    for task, layout in LAYOUTS.items():
        key = next(c for c in layout.columns if c.name == layout.key)
        if any(name in entry for name in key.names) or key.replaced(entry):
            return task
    nearest = [
        (difflib.SequenceMatcher(None, column, layout.key).ratio(), task)
        for task, layout in LAYOUTS.items()
        for column in map(str, entry)
        if column not in ("file_name", "regions", "answer", "answers", "label")
    ]
    score, task = max(nearest, key=lambda pair: pair[0], default=(0.0, ""))
    if score >= 0.6:
        return task
    if "answer" in entry or "answers" in entry:
        return "vqa"
    if "label" in entry:
        return "classification"  # of the image alone
    keys = ", ".join(f"{layout.key} ({task})" for task, layout in LAYOUTS.items())
    raise MmflaxError(
        f"{where}: no column says what the task is (found: {_list(entry)}); expected one of "
        f"{keys}, or name the task, as in --config.data.task=vqa."
    )


def answer_form(task: str, how: str | None) -> Form:
    """When two spellings of an answer are one: ``how`` the config says, else as the task has it."""
    return form_of(how or ("vqa" if task == "vqa" else "case"))


def parse(
    where: str,
    task: str,
    entry: Mapping[str, Any],
    image: Callable[[Column, str], Any],
    form: Form = same,
) -> Raw:
    """The row as a raw example without an id; ``image(column, name)`` gives the path of an image,
    or of a column of regions the `RegionFile`.

    Of several annotators' answers the commonest is the answer; spellings of a ``form`` are one.
    Captions and the like stay a list under ``references``; ``folder`` turns them into examples.
    """
    layout = LAYOUTS[task]
    if _CAPTION in layout.columns and not {*_CAPTION.names, "label"} & entry.keys():
        # As imagefolder's documentation calls it.
        entry = {"caption" if key == "text" else key: value for key, value in entry.items()}
    _check_columns(where, layout, entry)
    values: dict[str, Any] = {}
    for column in layout.columns:
        optional = column not in layout.required
        several = entry.get(column.plural) if column.plural else None
        if several is not None:
            values[column.plural] = _texts(where, column.plural, several)
        value = entry.get(column.name)
        if value is None and (optional or several is not None or column.replaced(entry)):
            continue
        if column.absent and (value is None or (isinstance(value, str) and not value.strip())):
            value = None
        elif column.kind == "truth":
            value = _truth(where, column.name, value)
        else:
            value = _text(where, column.name, value)
            value = image(column, value) if column.kind in ("image", "regions") else value
        values[column.name] = value
    if "answers" in values:
        values.setdefault("answer", _commonest(values["answers"], form))
    return _RAW[task](where, values) | {"question_type": values.get("question_type", "all")}


def _vqa(where: str, values: dict[str, Any]) -> Raw:
    raw = {**_shown(values), "question": values["question"]}
    if "answers" not in values:
        return raw | {"answer": values["answer"]}
    return raw | {"answer": values["answer"], "answers": values["answers"]}


def _commonest(answers: list[str], form: Form) -> str:
    """Of what most gave, the spelling of most; ties go to the first that was given."""
    groups = grouped(Counter(answers), form).values()
    best = max(groups, key=lambda group: group.total())
    return best.most_common(1)[0][0]


def _shown(values: dict[str, Any]) -> Raw:
    """What shows the images: paths, and files of regions."""
    keys = {
        "file_name": "image", "regions": "regions", "file_name_2": "second_image",
        "regions_2": "second_regions",
    }  # fmt: skip
    shown = {keys[name]: value for name, value in values.items() if name in keys}
    return {k: v for k, v in shown.items() if v is not None or k == "image"}


def _image_id(shown: Raw, prefix: str = "") -> str:
    image = shown.get(f"{prefix}image")
    return str(shown[f"{prefix}regions"].path if image is None else image)


def _captioning(where: str, values: dict[str, Any]) -> Raw:
    shown = _shown(values)
    references = values.get("captions") or [values["caption"]]
    return {**shown, "image_id": _image_id(shown), "question": None, "references": references}


def _statement(where: str, values: dict[str, Any]) -> Raw:
    shown = _shown(values)
    text = values.get("statement") or values["hypothesis"]
    image = _image_id(shown)
    raw = {**shown, "image_id": image, "question": text, "answer": values["label"]}
    if not {"second_image", "second_regions"} & shown.keys():
        return raw
    both = f"{image}|{_image_id(shown, SECOND)}"
    return raw | {"image_id": both, "group": values.get("group", text)}


def _classification(where: str, values: dict[str, Any]) -> Raw:
    shown = _shown(values)
    if all(value is None for value in (*shown.values(), values["text"])):
        raise MmflaxError(f"{where}: file_name and text are both absent; fill in one of them.")
    return {**shown, "question": values["text"], "answer": values["label"]}


def _translation(where: str, values: dict[str, Any]) -> Raw:
    references = values.get("targets") or [values["target"]]
    raw = {**_shown(values), "question": values["source"]}
    return raw | {"target": values.get("target", references[0]), "references": references}


_RAW: dict[str, Callable[[str, dict[str, Any]], Raw]] = {
    "vqa": _vqa,
    **dict.fromkeys(("entailment", "reasoning", "matching"), _statement),
    "translation": _translation,
    "classification": _classification,
    **dict.fromkeys(("captioning", "retrieval"), _captioning),
}


def _check_columns(where: str, layout: Layout, entry: Mapping[str, Any]) -> None:
    known = {name for column in layout.columns for name in column.names}
    others = [str(key) for key in entry if key not in known]
    for column in layout.columns:
        if any(name in entry for name in column.names) or column.replaced(entry):
            continue
        if column.kind == "regions":  # a column that resembles it is the user's own
            continue
        required = column in layout.required
        # A text that is left out is as good as null; an image may have another name.
        required &= not column.absent or column.kind == "image"
        for name in column.names:
            # A column that only resembles an optional one may be the user's own: be surer of it.
            near = difflib.get_close_matches(name, others, n=1, cutoff=0.6 if required else 0.85)
            if required and column.kind == "image" and not near:
                near = [other for other in others if other.lower() in _IMAGE_NAMES]
            if near:
                raise MmflaxError(f"{where}: found the column {near[0]!r}; rename it to {name!r}.")
        if required:
            needed = ", ".join(" or ".join(column.names) for column in layout.required)
            other = f", or {column.instead} in place of {column.name}" if column.instead else ""
            raise MmflaxError(
                f"{where}: the column {column.name!r} is missing (found: {_list(entry)}); every "
                f"row needs {needed}{other}."
            )


def _list(names: Iterable[Any]) -> str:
    return ", ".join(map(str, names)) or "none"


def _text(where: str, column: str, value: Any) -> str:
    """The value as text; numbers and truths as JSON writes them, a whole number without a point."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, (int, float)) and math.isfinite(value):
        value = str(int(value) if value == int(value) else value)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise MmflaxError(f"{where}: {column} is empty; fill it in or remove the row.")
    several = isinstance(value, str) and value.lstrip()[0] == "[" and _listed(value) is not None
    if not isinstance(value, str) or several:
        hint = f"; a list goes into {column}s" if several or isinstance(value, list) else ""
        raise MmflaxError(f"{where}: {column} is {value!r}; expected text in quotes{hint}.")
    return value.strip()


def _listed(value: str) -> list[Any] | None:
    """The list that a text writes, as JSON or as Python does; None for another text."""
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else None
    return None


def _texts(where: str, column: str, value: Any) -> list[str]:
    """A list of texts; in a CSV file it is written as JSON, or as Python writes it."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        written, value = value, _listed(value)
        if value is None:
            raise MmflaxError(
                f'{where}: {column} is {written!r}; it is not a JSON list such as ["a", "b"].'
            )
    if isinstance(value, list):  # VQA's annotators are objects
        value = [
            one["answer"] if isinstance(one, dict) and "answer" in one else one for one in value
        ]
    if not isinstance(value, list) or not value:
        raise MmflaxError(
            f'{where}: {column} is {value!r}; expected a list of texts such as ["a", "b"].'
        )
    return [_text(where, column, one) for one in value]


def _truth(where: str, column: str, value: Any) -> str:
    word = _TRUTHS.get(_text(where, column, value).lower())
    if word is None:
        raise MmflaxError(f"{where}: {column} is {value!r}; expected true or false (or 1 or 0).")
    return word
