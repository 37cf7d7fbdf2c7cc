"""Dividing a folder's rows into splits, leaks between splits, and captions as examples."""

import hashlib
import json
import math
import os
import pathlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping

from mmflax.batch_keys import PREFIXES
from mmflax.data.answers import Form, same
from mmflax.data.contents import Contents, fingerprint
from mmflax.data.dataset import IMAGES, Raw
from mmflax.data.image.transforms import open_image
from mmflax.errors import MmflaxError

_REGIONS = tuple(f"{prefix}regions" for prefix in PREFIXES)


def images_of(row: Raw) -> list[str]:
    """The paths of the images of a row, and of the files of their regions."""
    images = [row[key] for key in IMAGES if row.get(key) is not None]
    return images + [row[key].path for key in _REGIONS if key in row]


def check_repeats(splits: Mapping[str, list[Raw]]) -> None:
    """Raises for a row that occurs twice in a split, naming both lines."""
    for rows in splits.values():
        seen: dict[str, str] = {}
        for row in rows:
            content = repr([(key, value) for key, value in row.items() if key != "id"])
            first = seen.setdefault(content, row["id"])
            if first != row["id"]:
                raise MmflaxError(
                    f"{line_of(row['id'])}: the same row as {line_of(first)}; remove one, or set "
                    "--config.data.allow_repeats=True."
                )


def check_leaks(splits: Mapping[str, list[Raw]], *, allowed: bool) -> int:
    """How many images are in more than one split, by name or as a copy; raises if not allowed.

    Only files of equal size are compared, by sha256, so that little is read. A file that cannot be
    read as an image teaches nothing, so it may be anywhere.
    """
    where: dict[str, dict[str, str]] = defaultdict(dict)  # path -> split -> a row's id
    for split, rows in splits.items():
        for row in rows:
            for image in images_of(row):
                where[image].setdefault(split, row["id"])
    sizes: dict[int, list[str]] = defaultdict(list)
    for image in where:
        sizes[os.path.getsize(image)].append(image)
    same: dict[str, list[str]] = defaultdict(list)
    for images in sizes.values():
        if len({split for image in images for split in where[image]}) > 1:
            for image in images:
                same[_file_sha256(image) if len(images) > 1 else image].append(image)
    regions = {
        row[key].path for rows in splits.values() for row in rows for key in _REGIONS if key in row
    }
    leaks = 0
    for images in same.values():
        uses = [(split, image, id) for image in images for split, id in where[image].items()]
        others = [use for use in uses if use[0] != uses[0][0]]
        if others and images[0] not in regions and not _readable(images[0]):
            continue
        leaks += bool(others)
        if others and not allowed:
            first, other = uses[0], others[0]
            kind = "is" if first[1] == other[1] else "has the same bytes as"
            raise MmflaxError(
                f"{line_of(other[2])}: the image {other[1]} of {other[0]} {kind} {first[1]} of "
                f"{first[0]} ({line_of(first[2])}), so the score would be of what was learned by "
                "heart; take it out of one split, or set --config.data.allow_leak=True."
            )
    return leaks


def hold_out(
    root: pathlib.Path,
    rows: list[Raw],
    fraction: float,
    form: Form = same,
    former_path: str | None = None,
    copies_apart: bool = True,
) -> tuple[list[Raw], list[Raw]]:
    """Moves whole images, in an order drawn from their names, while every answer stays in train.

    Rows that share an image, or a group, go together; a row without an image goes alone.

    Args:
      root: names are those inside it.
      fraction: of the images, rounded up.
      form: spellings of the same form are one answer.
      former_path: of a run from before names were those inside the folder, its path as it was
        written, which then stood before them where it was relative.
      copies_apart: whether images with the same bytes may be parted.
    """
    bundles = _bundles(rows, {} if copies_apart else _first_copies(rows))
    before = "" if former_path is None else before_names(former_path)

    def place(name: str) -> str:
        inside = relative(name, root)
        return sha256(inside if inside == name else before + inside)

    left = Counter(form(row["answer"]) for row in rows if "answer" in row)
    wanted = math.ceil(fraction * len(bundles)) if len(bundles) > 1 else 0
    held: set[str] = set()
    for name in sorted(bundles, key=place):
        if len(held) == wanted:
            break
        answers = Counter(form(row["answer"]) for row in bundles[name] if "answer" in row)
        if all(left[answer] > count for answer, count in answers.items()):
            left -= answers
            held.add(name)
    taken = {row["id"] for name in held for row in bundles[name]}
    parts: tuple[list[Raw], list[Raw]] = ([], [])
    for row in rows:
        parts[row["id"] in taken].append(row)
    return parts


def before_names(former_path: str) -> str:
    """What stood before the names inside a folder whose path was written like this."""
    if os.path.isabs(os.path.expanduser(former_path)):
        return ""
    return (pathlib.Path(former_path) / "x").as_posix()[:-1]


def hold_out_again(
    root: pathlib.Path, rows: list[Raw], names: Collection[str]
) -> tuple[list[Raw], list[Raw]]:
    """Moves the rows that show one of these images, as `held_names` listed them before."""
    held = set(names)
    parts: tuple[list[Raw], list[Raw]] = ([], [])
    for row in rows:
        parts[any(name in held for name in held_names(root, row))].append(row)
    return parts


def held_names(root: pathlib.Path, row: Raw) -> list[str]:
    """The names of a row's images inside ``root``; a digest of a row without one."""
    return [relative(image, root) for image in images_of(row)] or [row_digest(root, row)]


def row_digest(root: pathlib.Path, row: Raw) -> str:
    """Of the names and the texts of a row of a metadata file."""
    images = [relative(image, root) for image in images_of(row)]
    # The answer is the commonest of answers, so it says nothing more.
    left_out = (*IMAGES, *_REGIONS, "image_id", "id", *(("answer",) * ("answers" in row)))
    texts = {key: value for key, value in row.items() if key not in left_out}
    return sha256(json.dumps([images, texts], sort_keys=True))[:16]


def contents_of(root: pathlib.Path, rows: Iterable[Raw]) -> Contents:
    """The digest of every row and the fingerprint of every image."""
    digests: Counter[str] = Counter()
    images: dict[str, str] = {}
    for row in rows:
        digests[row_digest(root, row)] += 1
        for image in images_of(row):
            name = relative(image, root)
            if name not in images:
                images[name] = fingerprint(image)
    return Contents(digests, images)


def _first_copies(rows: list[Raw]) -> dict[str, str]:
    """For an image that has another's bytes, the first of these; empty files are no images."""
    sizes: dict[int, list[str]] = defaultdict(list)
    for image in dict.fromkeys(image for row in rows for image in images_of(row)):
        sizes[os.path.getsize(image)].append(image)
    first: dict[str, str] = {}
    copies: dict[str, str] = {}
    for size, images in sizes.items():
        for image in images if size and len(images) > 1 else ():
            copies[image] = first.setdefault(fingerprint(image), image)
    return copies


def _bundles(rows: list[Raw], copies: Mapping[str, str]) -> dict[str, list[Raw]]:
    """Connected components of rows that share an image or a group, by the first name.

    ``copies`` has for an image the one whose bytes it has.
    """
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]  # halves the way for the next one
            name = parent[name]
        return name

    def names(row: Raw) -> list[str]:
        # "\0" keeps a group's name apart from a path's.
        groups = [f"\0{row['group']}"] if "group" in row else []
        images = images_of(row)
        images += [copies[image] for image in images if image in copies]
        return images + groups or [row["id"]]

    for row in rows:
        first, *others = sorted(map(top, names(row)))
        for other in others:
            parent[other] = first
    bundles: dict[str, list[Raw]] = defaultdict(list)
    for row in rows:
        bundles[top(names(row)[0])].append(row)
    return bundles


def expand(task: str, split: str, rows: list[Raw], unit: str | None) -> list[Raw]:
    """Rows with captions as examples of captions or images; other rows as they are.

    The rows of an image share their ``references``.
    """
    if task not in ("captioning", "retrieval"):
        return rows
    references: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        references[row["image_id"]] += row["references"]
    key = "target" if task == "captioning" else "question"
    examples: list[Raw] = []
    if unit == "image" or (unit is None and task == "captioning" and split != "train"):
        first = {row["image_id"]: row for row in reversed(rows)}
        for image, captions in references.items():
            examples.append({**first[image], "references": captions, key: captions[0]})
        return examples
    for row in rows:
        shared = {**row, "references": references[row["image_id"]]}
        several = len(row["references"]) > 1
        for number, caption in enumerate(row["references"]):
            id = f"{row['id']}/{number}" if several else row["id"]
            examples.append({**shared, key: caption, "id": id})
    return examples


def relative(name: str, root: pathlib.Path) -> str:
    """The name of a path inside ``root``: composed Unicode, forward slashes; others as they are."""
    before = os.path.join(root, "")
    if not name.startswith(before):
        return name
    return unicodedata.normalize("NFC", name.removeprefix(before).replace(os.sep, "/"))


def sha256(text: str) -> str:
    """Hexadecimal digest of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def _readable(path: str) -> bool:
    try:
        open_image(path, at_least=32)
    except MmflaxError:
        return False
    return True


def line_of(id: str) -> str:
    file, colon, line = id.rpartition(":")
    return f"{file}, line {line}" if colon else id


def _file_sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
