"""``nlvr``: is the sentence true of the synthetic picture of three boxes?

Suhr et al. 2017, "A Corpus of Natural Language for Visual Reasoning". JSON lines and names as
github.com/lil-lab/nlvr/tree/master/nlvr describes them: each statement has six pictures, the orders
of its boxes, ``split-n-m-k.png`` with k = 0..5, somewhere below ``split/images``. Table 2: 74,460
training, 5,940 development and 5,934 public test pairs of a sentence and a picture.

``group`` is ``n``: the official ``metrics_images.py`` counts a presentation as consistent when
all its pictures are right.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.public.nlvr2 import true_or_false
from mmflax.data.datasets.public.prepare import Split, prepare
from mmflax.data.datasets.public.prepared import PreparedSource
from mmflax.data.datasets.public.published import File, Found, Record, field, record
from mmflax.errors import MmflaxError

ORDERS = 6
_SITE = "https://github.com/lil-lab/nlvr (nlvr)"


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    partial: bool = False,
) -> Dataset:
    """Splits train and validation; test if its file is there. One example for each picture.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/nlvr``. See docs/data.md.
      partial: accept fewer examples than published, and leave out those without a picture.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    manifest = prepare(
        "nlvr",
        _splits(),
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="nlvr",
        partial=partial,
    )
    splits = {
        name: PreparedSource(manifest["folder"], [entry])
        for name, entry in manifest["splits"].items()
    }
    info = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    return Dataset("nlvr", splits, info)


def _splits() -> list[Split]:
    return [
        _split("train", "train", 74_460),
        _split("validation", "dev", 5_940),
        _split("test", "test", 5_934, optional=True),
    ]


def _split(name: str, published: str, count: int, optional: bool = False) -> Split:
    annotations = File(
        (f"nlvr/{published}/{published}.json", f"{published}/{published}.json"), _SITE
    )
    images = File((f"nlvr/{published}/images", f"{published}/images"), _SITE)
    read = functools.partial(_read, split=published)
    return Split(name, (annotations,), (images,), read, count, optional)


def _read(files: Sequence[Found], split: str) -> Iterator[Record]:
    (file,) = files
    for where, entry in file.lines():
        identifier = field(where, entry, "identifier", str)
        if len(identifier.split("-")) != 2:
            raise MmflaxError(f"{where}: the identifier is {identifier!r}; expected n-m.")
        for order in range(ORDERS):
            image = f"{split}-{identifier}-{order}"
            example = {
                "id": image,
                "image_id": image,
                "question": field(where, entry, "sentence", str).strip(),
                "answer": true_or_false(where, entry),
                "group": f"{split}-{identifier.split('-')[0]}",
            }
            yield record([f"{image}.png"], [example])
