"""``snli_ve``: does the photograph entail, contradict or leave open what the sentence says?

Xie et al. 2019, "Visual Entailment: A Novel Task for Fine-Grained Image Understanding". Files and
counts as github.com/necla-ml/SNLI-VE has them: 529,527 training, 17,858 development and 17,901 test
pairs over 29,783, 1,000 and 1,000 images of Flickr30k. The image is the premise, ``sentence2`` the
hypothesis; the premise's caption, ``sentence1``, is not part of the task. Pairs whose
``gold_label`` is "-", as in SNLI, and those without a hypothesis are left out, and counted in
``info``.
"""

import functools
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public import lists
from mmflax.data.datasets.public.flickr30k import IMAGES
from mmflax.data.datasets.public.prepare import Split, open_dataset
from mmflax.data.datasets.public.published import Example, File, Left, LocalFile, field

LABELS = ("entailment", "neutral", "contradiction")
_SITE = "https://github.com/necla-ml/SNLI-VE"


def build(*, data_dir: Folder = None, source_dir: Folder = None, partial: bool = False) -> Dataset:
    """Splits train and validation; test if its file is there.

    Arguments and errors are those of ``prepare.open_dataset``; downloads are in ``flickr30k``.
    """
    splits = [
        Split(name, (File((file,), _SITE),), (IMAGES,), _read, count, optional=name == "test")
        for name, file, count in (
            ("train", "snli_ve_train.jsonl", 529_527),
            ("validation", "snli_ve_dev.jsonl", 17_858),
            ("test", "snli_ve_test.jsonl", 17_901),
        )
    ]
    table = [
        (split.name, f"ve_{file}.json", split.images, split.published)
        for split, file in zip(splits, ("train", "dev", "test"), strict=True)
    ]
    listed = lists.splits(table, functools.partial(lists.evidence, labels=LABELS))
    return open_dataset(
        "snli_ve", "flickr30k", splits, data_dir, source_dir, partial, others=[listed]
    )


def _read(files: Sequence[LocalFile]) -> Iterator[Example | Left]:
    (file,) = files
    for where, entry in file.entries():
        # The first release of the files spelled the key in the second way.
        key = "Flickr30K_ID" if "Flickr30K_ID" in entry else "Flikr30kID"
        image = str(field(where, entry, key, (str, int))).removesuffix(".jpg")
        id = field(where, entry, "pairID", str)
        yield lists.hypothesis(where, entry, f"{image}.jpg", id, "sentence2", "gold_label", LABELS)
