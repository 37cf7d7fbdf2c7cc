"""``nlvr2``: is the sentence true of the two photographs?

Suhr et al. 2019, "A Corpus for Reasoning about Natural Language Grounded in Photographs". JSON
lines and names as github.com/lil-lab/nlvr/tree/master/nlvr2 describes them: 86,373 training, 6,982
development, 6,967 public test and 6,970 formerly hidden test examples (107,292 in all).

An identifier is ``split-set-pair-sentence``; the images of a pair are ``split-set-pair-img0.png``
and ``…-img1.png``, whatever format they have inside. ``group`` is the identifier without the pair:
the official ``eval/metrics.py`` counts a statement as consistent when all its pairs are right.
"""

import functools
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public import lists
from mmflax.data.datasets.public.prepare import Split, of_regions, open_dataset
from mmflax.data.datasets.public.published import Example, File, LocalFile, field
from mmflax.errors import MmflaxError

_SITE = "https://github.com/lil-lab/nlvr (nlvr2/data)"
_FORM = "the request form at https://github.com/lil-lab/nlvr/tree/master/nlvr2"

# Folder of images -> what LXMERT's authors call its file of regions.
_REGION_STEMS = {"images/train": "train", "images/dev": "valid", "images/test1": "test"}


def build(
    *,
    data_dir: Folder = None,
    source_dir: Folder = None,
    partial: bool = False,
    regions: int = 0,
) -> Dataset:
    """Splits train and validation; test and test_unseen if their files are there.

    Arguments and errors are those of ``prepare.open_dataset``; downloads are in ``nlvr2``. Some
    addresses that the authors list are dead by now, so ``partial`` is likely to be needed. There
    are no published regions of test_unseen, which is left out with ``regions``.
    """
    splits = _splits()
    names = ("nlvr_train.json", "nlvr_dev.json", "nlvr_test.json")
    table = [(s.name, n, s.images, s.published) for s, n in zip(splits[:3], names, strict=True)]
    read = functools.partial(lists.pairs, truth=true_or_false)
    listed = [split._replace(pictures=2) for split in lists.splits(table, read)]
    if regions:
        splits, listed = (
            of_regions(some[:3], regions, "nlvr2_imgfeat", _REGION_STEMS)
            for some in (splits, listed)
        )
    return open_dataset(
        "nlvr2", "nlvr2", splits, data_dir, source_dir, partial, regions, others=[listed]
    )


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


def _read(files: Sequence[LocalFile]) -> Iterator[Example]:
    (file,) = files
    for where, entry in file.entries():
        identifier = field(where, entry, "identifier", str)
        words = identifier.split("-")
        if len(words) != 4:
            raise MmflaxError(
                f"{where}: the identifier is {identifier!r}; expected split-set-pair-sentence."
            )
        split, images, pair, sentence = words
        image = f"{split}-{images}-{pair}"
        fields = {
            "id": identifier,
            "image_id": image,
            "question": field(where, entry, "sentence", str).strip(),
            "answer": true_or_false(where, entry),
            "group": f"{split}-{images}--{sentence}",
        }
        yield Example((f"{image}-img0.png", f"{image}-img1.png"), fields)


def true_or_false(where: str, entry: Raw) -> str:
    """The label, a word or a boolean, in small letters; anything else raises."""
    given = entry.get("label")
    label = str(given).lower() if isinstance(given, bool) else field(where, entry, "label", str)
    label = label.strip().lower()
    if label not in ("true", "false"):
        raise MmflaxError(f"{where}: the label is {entry['label']!r}; expected True or False.")
    return label
