"""Published files to ArrayRecord: all checked first, then written part by part.

A part is named by a digest of its content, so a preparation that was killed continues with the
missing parts, and files of other content are never taken for it. The manifest is written last; from
then on the published files are not needed.
"""

import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mmflax.data.dataset import Dataset, Source, Subset
from mmflax.data.datasets.cache import Folder, data_root, locked, progress, quiet
from mmflax.data.datasets.public.prepared import PreparedSource, View
from mmflax.data.datasets.public.published import (
    Example,
    File,
    Images,
    Left,
    LocalFile,
    Record,
    locate,
)
from mmflax.data.datasets.public.published_regions import Pictures, RegionFiles, region_file
from mmflax.errors import MmflaxError
from mmflax.files import write_file

RECORDS_PER_PART = 1000
MANIFEST = "prepared.json"
_FORMAT = 1
_NAMED = 10  # of the images that are not there


class Split(NamedTuple):
    """One split as published.

    Attributes:
      name: the split's name here.
      annotations: the files that ``read`` gets, in this order.
      images: folders that hold its images, or files of their regions.
      read: ``(files) -> examples``, and what is left out of them.
      published: how many examples its authors count; 0 where they do not say.
      optional: left out when its first annotation file is not there.
      pictures: images of each record.
    """

    name: str
    annotations: tuple[File, ...]
    images: tuple[File, ...]
    read: Callable[[Sequence[LocalFile]], Iterable[Example | Left]]
    published: int = 0
    optional: bool = False
    pictures: int = 1


def of_regions(
    splits: Sequence[Split], regions: int, folder: str, stems: Mapping[str, str] | None = None
) -> list[Split]:
    """The splits with files of ``regions`` boxes an image in place of their folders of images.

    Args:
      folder: that their authors keep the files in.
      stems: folder of images -> its file's name up to ``_obj``; by default the folder's own.
    """
    if regions < 0:
        raise MmflaxError(
            f"data.regions is {regions}; expected the boxes of each image, such as the published "
            "36, or 0 for the images themselves."
        )

    def file(images: File) -> File:
        stem = images.names[0]
        return region_file((stems or {}).get(stem, stem), regions, folder)

    return [split._replace(images=tuple(map(file, split.images))) for split in splits]


def open_dataset(
    name: str,
    downloads: str,
    splits: Sequence[Split],
    data_dir: Folder = None,
    source_dir: Folder = None,
    partial: bool = False,
    regions: int = 0,
    *,
    view: View | None = None,
    others: Sequence[Sequence[Split]] = (),
) -> Dataset:
    """The data set of these published splits, which are prepared on the first use.

    Args:
      name: of the data set.
      downloads: the folder of its published files; data sets that share images share it.
      splits: what is published.
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the published files; by default ``data_dir/downloads/<downloads>``, see
        docs/data.md.
      partial: accept fewer examples than published, and leave out those without their images.
      regions: boxes a detector found in each image (36 as LXMERT's authors publish them), which
        stand in place of the image (``of_regions``); 0 = the images.
      view: from the stored examples of an image to raw ones; by default they are the same.
      others: the same splits from other files, taken where those of ``splits`` are not there.

    Raises:
      MmflaxError: a file that is missing, damaged or not the published one, an image that is
        missing, an id that occurs twice, an image in two splits, or a folder that cannot be
        written.
    """
    manifest = prepare(name, downloads, splits, data_dir, source_dir, partial, regions, others)
    sources: dict[str, Source] = {}
    for split, entry in manifest["splits"].items():
        sources[split] = PreparedSource(manifest["folder"], [entry], view=view)
        for marked, places in entry["marked"].items():
            sources[marked] = Subset(sources[split], places)
    return Dataset(name, sources, info(manifest))


def info(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The facts about prepared data for ``run.json``."""
    facts = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    # What the annotations have and the task has not: {"train": {"an empty caption": 2}}.
    skipped = {split: reasons for split, reasons in manifest.get("skipped", {}).items() if reasons}
    for key, value in (("no_examples", skipped), ("absent", manifest.get("absent"))):
        if value:
            facts[key] = value
    return facts


def prepare(
    name: str,
    downloads: str,
    splits: Sequence[Split],
    data_dir: Folder,
    source_dir: Folder,
    partial: bool,
    regions: int = 0,
    others: Sequence[Sequence[Split]] = (),
) -> dict[str, Any]:
    """The manifest, prepared by this process or another one before; see ``open_dataset``."""
    root = data_root(data_dir)
    source = pathlib.Path(source_dir or root / "downloads" / downloads).expanduser()
    for layout in (splits, *others):
        if layout[0].annotations[0].find(source) is not None:
            splits = layout
            break
    folder = root / (f"{name}_obj{regions}" if regions else name)
    with locked(folder.name, folder):
        manifest = _load(folder)
        if manifest is None or not _fits(manifest, splits, source, partial):
            with quiet():
                manifest = _prepare(folder.name, splits, source, folder, partial, regions)
    return manifest | {"folder": str(folder)}


def _load(folder: pathlib.Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return manifest if manifest.get("format") == _FORMAT else None


def _fits(
    manifest: dict[str, Any], splits: Sequence[Split], source: pathlib.Path, partial: bool
) -> bool:
    """Whether it was made from these annotation files, of which any may be gone by now."""
    if manifest["partial"] and not partial:
        return False
    files = _annotations(splits, source)
    if manifest["left_out"] and files:
        return False  # the images that were absent may have come
    return all(_same(path, manifest["sources"].get(name)) for name, path in files.items())


def _annotations(splits: Sequence[Split], source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Every annotation file that is there."""
    files = (file.find(source) for split in splits for file in split.annotations)
    return {file.name: file.path for file in files if file is not None}


def _identity(path: pathlib.Path) -> list[Any]:
    """Bytes, time of the last change and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return [path.stat().st_size, path.stat().st_mtime_ns, digest]


def _same(path: pathlib.Path, former: Any) -> bool:
    """Whether it is the file whose `_identity` this is; of older manifests only the size."""
    size, changed = path.stat().st_size, path.stat().st_mtime_ns
    if not isinstance(former, list):
        return bool(size == former)
    return former[:2] == [size, changed] or (former[0] == size and _identity(path)[2] == former[2])


def _prepare(
    name: str,
    splits: Sequence[Split],
    source: pathlib.Path,
    folder: pathlib.Path,
    partial: bool,
    regions: int,
) -> dict[str, Any]:
    from mmflax.data.datasets.public.parts import Part

    taken = [s for s in splits if not s.optional or s.annotations[0].find(source) is not None]
    files = locate(name, source, (file for s in taken for file in (*s.annotations, *s.images)))
    places = [files[file].path for split in taken for file in split.images]
    images: Pictures = RegionFiles(places, regions, name) if regions else Images(places)
    try:
        read = [(split, _read(name, split, files, images, partial)) for split in taken]
        _check_disjoint(name, [(split.name, taken.records) for split, taken in read])
        parts = [
            Part(split.name, index, records[start : start + RECORDS_PER_PART], images)
            for split, (records, *_) in read
            for index, start in enumerate(range(0, len(records), RECORDS_PER_PART))
        ]
        total = sum(len(part.names) for part in parts if not part.written(folder))
        with progress(name, "preparing {} images", "prepared {} images", total) as advance:
            for part in parts:
                part.write(folder, advance)
    finally:
        images.close()
    manifest = {
        "format": _FORMAT,
        "sources": {n: _identity(path) for n, path in _annotations(taken, source).items()},
        "partial": partial,
        "left_out": sum(taken.left for _, taken in read),
        "absent": [image for _, taken in read for image in taken.absent][:_NAMED],
        "skipped": {split.name: taken.skipped for split, taken in read},
        "splits": {
            split.name: {
                "pictures": split.pictures,
                **({"regions": images.shape} if isinstance(images, RegionFiles) else {}),
                "parts": [part.entry() for part in parts if part.split == split.name],
                "marked": _marked(records),
            }
            for split, (records, *_) in read
        },
    }
    write_file(folder / MANIFEST, json.dumps(manifest))
    return manifest


class _Taken(NamedTuple):
    """A split's records, how many examples lack an image, which images, and what was skipped."""

    records: list[Record]
    left: int
    absent: list[str]
    skipped: dict[str, int]


def _read(
    name: str, split: Split, files: Mapping[File, LocalFile], images: Pictures, partial: bool
) -> _Taken:
    """The examples whose images are there."""
    where = f"{name}, split {split.name}"
    groups: dict[tuple[str, ...], list[Example]] = {}  # by image, in the order of the files
    ids: set[str] = set()
    skipped: Counter[str] = Counter()
    for example in split.read([files[file] for file in split.annotations if file in files]):
        if isinstance(example, Left):
            skipped[example.reason] += 1
            continue
        id = example.fields["id"]
        if id in ids:
            raise MmflaxError(f"{where}: the id {id!r} occurs twice; download the files again.")
        ids.add(id)
        groups.setdefault(example.images, []).append(example)
    counts = (len(ids), len(ids) + skipped.total())
    if not partial and split.published and split.published not in counts:
        raise MmflaxError(
            f"{where}: found {len(ids):,} examples where {split.published:,} are published; "
            f"download {split.annotations[0].describe()} again, or give "
            f"--config.data.partial=True to take these."
        )
    absent = dict.fromkeys(n for names in groups for n in names if n not in images)
    kept = [
        Record.of(names, examples)
        for names, examples in groups.items()
        if not any(name in absent for name in names)
    ]
    left = len(ids) - sum(len(record.marks) for record in kept)
    if left and not partial:
        origins = "; ".join(file.describe() for file in split.images)
        places = " or ".join(str(files[file].path) for file in split.images)
        raise MmflaxError(
            f"{where}: {len(absent):,} images are named but not in {places}, such as "
            f"{next(iter(absent))}; download {origins} again, or set "
            "--config.data.partial=True to leave their examples out."
        )
    if not kept:
        raise MmflaxError(f"{where}: there is no example with an image; see docs/data.md.")
    return _Taken(kept, left, list(absent), dict(skipped))


def _check_disjoint(name: str, splits: Iterable[tuple[str, list[Record]]]) -> None:
    owner: dict[str, str] = {}
    for split, records in splits:
        for image in (image for record in records for image in record.images):
            if owner.setdefault(image, split) != split:
                raise MmflaxError(
                    f"{name}: the image {image} is in {owner[image]} and in {split}, which the "
                    "published splits never share; download the annotations again."
                )


def _marked(records: Iterable[Record]) -> dict[str, list[int]]:
    """For each smaller split the places of its examples."""
    marked: dict[str, list[int]] = {}
    for place, names in enumerate(marks for record in records for marks in record.marks):
        for name in names:
            marked.setdefault(name, []).append(place)
    return marked
