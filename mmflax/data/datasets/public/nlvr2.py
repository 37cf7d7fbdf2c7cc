"""``nlvr2``: is the sentence true of the two photographs?

Suhr et al. 2019, "A Corpus for Reasoning about Natural Language Grounded in Photographs". JSON
lines and names as github.com/lil-lab/nlvr/tree/master/nlvr2 describes them: 86,373 training, 6,982
development, 6,967 public test and 6,970 formerly hidden test examples (107,292 in all).

An identifier is ``split-set-pair-sentence``; the images of a pair are ``split-set-pair-img0.png``
and ``…-img1.png``, whatever format they have inside. ``group`` is the identifier without the pair:
the official ``eval/metrics.py`` counts a statement as consistent when all its pairs are right.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.public.prepare import Split, of_regions, prepare
from mmflax.data.datasets.public.prepared import PreparedSource
from mmflax.data.datasets.public.published import File, Found, Record, field, record
from mmflax.errors import MmflaxError

_SITE = "https://github.com/lil-lab/nlvr (nlvr2/data)"
_FORM = "the request form at https://github.com/lil-lab/nlvr/tree/master/nlvr2"

# Folder of images -> what LXMERT's authors call its file of regions.
_REGION_STEMS = {"images/train": "train", "images/dev": "valid", "images/test1": "test"}


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    partial: bool = False,
    regions: int = 0,
) -> Dataset:
    """Splits train and validation; test and test_unseen if their files are there.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/nlvr2``. See docs/data.md.
      partial: accept fewer examples than published, and leave out those without their images: the
        addresses that the authors list are partly dead by now.
      regions: boxes of a detector (36 as LXMERT's authors publish them, but for test_unseen, which
        is left out) in place of the images, which are not needed then; 0 = the images.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    splits_ = _splits()
    if regions:
        published = [split for split in splits_ if split.name != "test_unseen"]
        splits_ = of_regions(published, regions, "nlvr2_imgfeat", _REGION_STEMS)
    manifest = prepare(
        f"nlvr2_obj{regions}" if regions else "nlvr2",
        splits_,
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="nlvr2",
        partial=partial,
        regions=regions,
    )
    splits = {
        name: PreparedSource(manifest["folder"], [entry])
        for name, entry in manifest["splits"].items()
    }
    info = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    return Dataset("nlvr2", splits, info)


def _splits() -> list[Split]:
    return [
        _split("train", "train", 86_373),
        _split("validation", "dev", 6_982),
        _split("test", "test1", 6_967, optional=True),
        _split("test_unseen", "test2", 6_970, optional=True),
    ]


def _split(name: str, published: str, count: int, optional: bool = False) -> Split:
    annotations = File((f"nlvr2/data/{published}.json", f"{published}.json"), _SITE)
    images = File((f"images/{published}", published), _FORM, f"{published}.zip")
    return Split(name, (annotations,), (images,), _read, count, optional, pictures=2)


def _read(files: Sequence[Found]) -> Iterator[Record]:
    (file,) = files
    pairs: dict[str, list[Raw]] = {}
    for where, entry in file.lines():
        identifier = field(where, entry, "identifier", str)
        words = identifier.split("-")
        if len(words) != 4:
            raise MmflaxError(
                f"{where}: the identifier is {identifier!r}; expected split-set-pair-sentence."
            )
        split, images, pair, sentence = words
        pairs.setdefault(f"{split}-{images}-{pair}", []).append(
            {
                "id": identifier,
                "image_id": f"{split}-{images}-{pair}",
                "question": field(where, entry, "sentence", str).strip(),
                "answer": true_or_false(where, entry),
                "group": f"{split}-{images}--{sentence}",
            }
        )
    for pair, examples in pairs.items():
        yield record([f"{pair}-img0.png", f"{pair}-img1.png"], examples)


def true_or_false(where: str, entry: Raw) -> str:
    """The label in small letters; anything else raises."""
    label = field(where, entry, "label", str).lower()
    if label not in ("true", "false"):
        raise MmflaxError(f"{where}: the label is {entry['label']!r}; expected True or False.")
    return label
