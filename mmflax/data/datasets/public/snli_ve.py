"""``snli_ve``: does the photograph entail, contradict or leave open what the sentence says?

Xie et al. 2019, "Visual Entailment: A Novel Task for Fine-Grained Image Understanding". Files and
counts as github.com/necla-ml/SNLI-VE has them: 529,527 training, 17,858 development and 17,901 test
pairs over 29,783, 1,000 and 1,000 images of Flickr30k. The image is the premise, ``sentence2`` the
hypothesis; the premise's caption, ``sentence1``, is not part of the task.
"""

from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public.flickr30k import IMAGES
from mmflax.data.datasets.public.prepare import Split, open_dataset
from mmflax.data.datasets.public.published import Example, File, LocalFile, field
from mmflax.errors import MmflaxError

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
    return open_dataset("snli_ve", "flickr30k", splits, data_dir, source_dir, partial)


def _read(files: Sequence[LocalFile]) -> Iterator[Example]:
    (file,) = files
    for where, entry in file.lines():
        # The first release of the files spelled the key in the second way.
        key = "Flickr30K_ID" if "Flickr30K_ID" in entry else "Flikr30kID"
        image = str(field(where, entry, key, (str, int))).removesuffix(".jpg")
        label = field(where, entry, "gold_label", str)
        if label not in LABELS:
            raise MmflaxError(
                f"{where}: gold_label is {label!r}; expected one of {', '.join(LABELS)}."
            )
        fields = {
            "id": field(where, entry, "pairID", str),
            "image_id": image,
            "question": field(where, entry, "sentence2", str).strip(),
            "answer": label,
        }
        yield Example((f"{image}.jpg",), fields)
