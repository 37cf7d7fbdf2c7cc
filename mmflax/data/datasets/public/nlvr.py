"""``nlvr``: is the sentence true of the synthetic picture of three boxes?

Suhr et al. 2017, "A Corpus of Natural Language for Visual Reasoning". JSON lines and names as
github.com/lil-lab/nlvr/tree/master/nlvr describes them: each statement has six pictures, the orders
of its boxes, ``split-n-m-k.png`` with k = 0..5, somewhere below ``split/images``. Table 2: 74,460
training, 5,940 development and 5,934 public test pairs of a sentence and a picture.

``group`` is ``n``: the official ``metrics_images.py`` counts a presentation as consistent when
all its pictures are right.
"""

import functools
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public.nlvr2 import true_or_false
from mmflax.data.datasets.public.prepare import Split, open_dataset
from mmflax.data.datasets.public.published import Example, File, LocalFile, field
from mmflax.errors import MmflaxError

ORDERS = 6
_SITE = "https://github.com/lil-lab/nlvr (nlvr)"


def build(*, data_dir: Folder = None, source_dir: Folder = None, partial: bool = False) -> Dataset:
    """Splits train and validation; test if its file is there. One example for each picture.

    Arguments and errors are those of ``prepare.open_dataset``; downloads are in ``nlvr``.
    """
    return open_dataset("nlvr", "nlvr", _splits(), data_dir, source_dir, partial)


def _splits() -> list[Split]:
    return [
        _split("train", "train", 74_460),
        _split("validation", "dev", 5_940),
        _split("test", "test", 5_934, optional=True),
    ]


def _split(name: str, published: str, count: int, optional: bool = False) -> Split:
    annotations, images = (
        File((f"nlvr/{published}/{file}", f"{published}/{file}"), _SITE)
        for file in (f"{published}.json", "images")
    )
    read = functools.partial(_read, split=published)
    return Split(name, (annotations,), (images,), read, count, optional)


def _read(files: Sequence[LocalFile], split: str) -> Iterator[Example]:
    (file,) = files
    for where, entry in file.entries():
        identifier = field(where, entry, "identifier", str)
        if len(identifier.split("-")) != 2:
            raise MmflaxError(f"{where}: the identifier is {identifier!r}; expected n-m.")
        for order in range(ORDERS):
            image = f"{split}-{identifier}-{order}"
            fields = {
                "id": image,
                "image_id": image,
                "question": field(where, entry, "sentence", str).strip(),
                "answer": true_or_false(where, entry),
                "group": f"{split}-{identifier.split('-')[0]}",
            }
            yield Example((f"{image}.png",), fields)
