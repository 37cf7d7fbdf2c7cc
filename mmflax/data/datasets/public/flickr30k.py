"""``flickr30k``: Flickr photographs of people with five captions each.

Young et al. 2014, "From image descriptions to visual denotations", in the splits of Karpathy &
Fei-Fei 2015 as ``dataset_flickr30k.json`` has them: 29,000 images to train, 1,014 for validation,
1,000 for test, with five captions each.
"""

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public import flickr_tables, karpathy, lists
from mmflax.data.datasets.public.published import File

IMAGES = File(
    ("flickr30k_images", "flickr30k-images", "Images"),
    "the request form at https://shannon.cs.illinois.edu/DenotationGraph/",
    "flickr30k_images.zip",
)
_TABLE = (
    ("train", "train", IMAGES, 145_000),
    ("validation", "val", IMAGES, 5_070),
    ("test", "test", IMAGES, 5_000),
)


def build(
    *,
    data_dir: Folder = None,
    source_dir: Folder = None,
    task: str = "captioning",
    unit: str | None = None,
    partial: bool = False,
) -> Dataset:
    """Splits train, validation and test.

    LAVIS' lists of captions serve as well as Karpathy's file. From Kaggle's ``results.csv``, which
    has no splits, they are drawn, and ``info`` says so. Arguments and errors are those of
    ``karpathy.open_captions``; downloads are in ``flickr30k``.
    """
    listed = lists.splits(
        [
            ("train", "flickr30k_train.json", (IMAGES,), 145_000),
            ("validation", "flickr30k_val.json", (IMAGES,), 5_070),
            ("test", "flickr30k_test.json", (IMAGES,), 5_000),
        ],
        lists.captions,
    )
    drawn = flickr_tables.splits(IMAGES)
    notes = {flickr_tables.TABLE.names[0]: flickr_tables.NOTE}
    return karpathy.open_captions(
        "flickr30k", "flickr30k", "dataset_flickr30k.json", _TABLE, data_dir, source_dir, partial,
        task=task, unit=unit, others=[listed, drawn], notes=notes,
    )  # fmt: skip
