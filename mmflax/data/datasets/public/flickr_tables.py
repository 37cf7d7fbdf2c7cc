"""Flickr30k's captions as tables without splits: Kaggle's ``results.csv``, the authors' ``.token``.

``results.csv`` is no CSV: its lines are ``image| number| caption``, captions hold commas and
quotes, and the last line of 2199200615.jpg lacks its second separator. ``results_20130124.token``
has lines ``image#number<tab>caption``.
"""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence

from mmflax.data.datasets.public.prepare import Split
from mmflax.data.datasets.public.published import Example, File, Left, LocalFile
from mmflax.errors import MmflaxError

TABLE = File(
    (
        "results.csv",
        "flickr30k_images/results.csv",
        "results_20130124.token",
        "flickr30k/results_20130124.token",
    ),
    "Kaggle's flickr30k or https://shannon.cs.illinois.edu/DenotationGraph/",
)
NOTE = (
    "drawn from the names of the images, since the table of captions has none: results are not "
    "those of Karpathy's splits, which dataset_flickr30k.json has"
)
_IMAGES = 31_783  # of the whole, of which these are Karpathy's
_HELD_OUT = {"validation": 1_014, "test": 1_000}
_LINE = re.compile(r"\s*(?P<image>[^|#\t]+?)\s*(?:\|\s*(\d+)\s*\|?\s|#(\d+)\t)(?P<text>.*)")


def splits(images: File) -> list[Split]:
    """Train, validation and test of the table, the same ones wherever it lies."""
    # Parsed once for all splits, and forgotten with them.
    parse = functools.lru_cache(maxsize=1)(_captions)
    counts = {"train": _IMAGES - sum(_HELD_OUT.values())} | _HELD_OUT
    return [
        Split(
            name, (TABLE,), (images,), functools.partial(_read, split=name, parse=parse), 5 * count
        )
        for name, count in counts.items()
    ]


def _read(files: Sequence[LocalFile], split: str, parse: object) -> Iterator[Example | Left]:
    (file,) = files
    captions: dict[str, list[str]] = parse(file)  # type: ignore[operator]
    order = sorted(captions, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    if len(order) < 3:
        raise MmflaxError(f"{file} has captions of {len(order)} images; expected at least 3.")
    start = 0
    part: set[str] = set()
    for name, count in _HELD_OUT.items():
        stop = start + max(1, round(len(order) * count / _IMAGES))
        if name == split:
            part = set(order[start:stop])
        start = stop
    if split == "train":
        part = set(order[start:])
    for image, texts in captions.items():
        if image not in part:
            continue
        stem = image.rsplit(".", 1)[0]
        for number, text in enumerate(texts):
            fields = {"id": f"{stem}/{number}", "image_id": stem, "caption": text}
            yield Example((image,), fields) if text else Left("an empty caption")


def _captions(file: LocalFile) -> dict[str, list[str]]:
    captions: dict[str, list[str]] = {}
    with file.open() as content:
        for line, raw in enumerate(content, start=1):
            try:
                text = raw.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise MmflaxError(f"{file}, line {line}: not UTF-8 ({error.reason}).") from error
            if not text or (line == 1 and text.startswith("image_name")):
                continue
            match = _LINE.fullmatch(text + " ")
            if match is None:
                raise MmflaxError(
                    f"{file}, line {line}: found {text[:60]!r}; expected 'image.jpg| 0| caption' "
                    "or 'image.jpg#0<tab>caption'."
                )
            captions.setdefault(match["image"], []).append(" ".join(match["text"].split()))
    return captions
