"""Photographs with several captions each, in the splits of Karpathy & Fei-Fei 2015.

``caption_datasets.zip`` (cs.stanford.edu/people/karpathy/deepimagesent) holds one JSON file for
each data set: ``images``, a list of objects with ``filename``, ``split``, ``imgid`` or ``cocoid``,
and ``sentences`` (``raw``, ``sentid``).
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public.prepare import Split, info, prepare
from mmflax.data.datasets.public.prepared import PreparedSource
from mmflax.data.datasets.public.published import Example, File, LocalFile, field
from mmflax.errors import MmflaxError

SITE = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
ARCHIVE = "caption_datasets.zip"
TASKS = ("captioning", "retrieval")
UNITS = ("image", "caption")


def open_captions(
    name: str,
    downloads: str,
    file: str,
    table: Sequence[tuple[str, str, File, int]],
    data_dir: Folder,
    source_dir: Folder,
    partial: bool,
    *,
    task: str,
    unit: str | None,
    joined: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    others: Sequence[Sequence[Split]] = (),
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Dataset:
    """A data set of captions; other arguments and errors are those of ``prepare.open_dataset``.

    Args:
      file: the JSON file in ``caption_datasets.zip``.
      table: (split, its name in the file, its images, its captions).
      task: ``captioning`` (a caption is the ``target``, there is no question) or ``retrieval`` (a
        caption is the ``question``). ``references`` are always all captions of the image.
      unit: an example for each ``caption``, or one for each ``image``; None is the first in train
        and for retrieval, else the second.
      joined: splits that consist of several, which then have no split of their own.
      others: the splits from other files, taken where ``file`` is not there.
      notes: what ``info`` says of splits that come from such a file.
    """
    if task not in TASKS:
        raise MmflaxError(f"task is {task!r}; choose one of {', '.join(TASKS)}.")
    if unit is not None and unit not in UNITS:
        raise MmflaxError(f"unit is {unit!r}; choose one of {', '.join(UNITS)}, or None.")
    known = tuple(published for _, published, _, _ in table)
    annotations = File((file, f"karpathy/{file}"), SITE, ARCHIVE)
    # Parsed once for all splits, and forgotten with them: COCO's takes a gigabyte.
    parse = functools.lru_cache(maxsize=1)(_images)
    splits = [
        Split(
            split,
            (annotations,),
            (images,),
            functools.partial(_read, split=published, known=known, parse=parse),
            captions,
        )
        for split, published, images, captions in table
    ]
    manifest = prepare(name, downloads, splits, data_dir, source_dir, partial, others=others)
    taken = {part for parts in joined.values() for part in parts}
    sources = {}
    for split in manifest["splits"]:
        if split in joined or split not in taken:
            parts = [p for p in joined.get(split, (split,)) if p in manifest["splits"]]
            each = unit or ("caption" if task == "retrieval" or "train" in parts else "image")
            sources[split] = PreparedSource(
                manifest["folder"],
                [manifest["splits"][part] for part in parts],
                view=functools.partial(_view, task=task, unit=each),
                one_each=each == "image",
            )
    noted = [notes[one] for one in manifest["sources"] if one in notes]
    facts = {"splits": noted[0]} if noted else {}
    return Dataset(name, sources, info(manifest) | facts)


def _view(stored: list[Raw], task: str, unit: str) -> list[Raw]:
    references = [entry["caption"] for entry in stored]
    image = stored[0]["image_id"]
    key, absent = ("target", {"question": None}) if task == "captioning" else ("question", {})
    common = {**absent, "image_id": image, "references": references}
    if unit == "image":
        return [{**common, key: references[0], "id": image}]
    return [{**common, key: entry["caption"], "id": entry["id"]} for entry in stored]


def _read(
    files: Sequence[LocalFile],
    split: str,
    known: Sequence[str],
    parse: Callable[[LocalFile], list[Any]],
) -> Iterator[Example]:
    (file,) = files
    names: set[str] = set()
    for number, entry in enumerate(parse(file)):
        where = f"{file}: image {number}"
        part = field(where, entry, "split", str)
        if part not in known:
            raise MmflaxError(f"{where}: split is {part!r}; expected one of {', '.join(known)}.")
        if part != split:
            continue
        name = field(where, entry, "filename", str)
        where += f" ({name})"
        image = str(entry["cocoid"] if "cocoid" in entry else name.rsplit(".", 1)[0])
        sentences = field(where, entry, "sentences", list)
        if not sentences or name in names:
            problem = "is listed twice" if sentences else "has no sentences"
            raise MmflaxError(f"{where} {problem}; download it again.")
        names.add(name)
        for sentence in sentences:
            id = str(field(where, sentence, "sentid", int))
            caption = " ".join(field(where, sentence, "raw", str).split())
            yield Example((name,), {"id": id, "image_id": image, "caption": caption})


def _images(file: LocalFile) -> list[Any]:
    return list(field(file, file.json(hook=_without_tokens), "images", list))


def _without_tokens(entry: dict[str, Any]) -> dict[str, Any]:
    entry.pop("tokens", None)
    return entry
