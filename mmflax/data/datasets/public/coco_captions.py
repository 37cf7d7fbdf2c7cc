"""``coco_captions``: COCO 2014 photographs with five captions each, or a few more.

Chen et al. 2015, "Microsoft COCO Captions", in the splits of Karpathy & Fei-Fei 2015: 82,783 images
to train, 30,504 more of the validation images that most work adds to train ("restval"), 5,000 for
validation, 5,000 for test (tensorflow.org/datasets/catalog/coco_captions has the same counts).
Captions: 414,113, 152,634, 25,010 and 25,010, which are all of COCO's 616,767.
"""

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public import karpathy, lists
from mmflax.data.datasets.public.published import File

_TRAIN, _VAL = (
    File((folder,), "https://cocodataset.org/#download", f"{folder}.zip")
    for folder in ("train2014", "val2014")
)
_TABLE = (
    ("train", "train", _TRAIN, 414_113),
    ("restval", "restval", _VAL, 152_634),
    ("validation", "val", _VAL, 25_010),
    ("test", "test", _VAL, 25_010),
)


def build(
    *,
    data_dir: Folder = None,
    source_dir: Folder = None,
    task: str = "captioning",
    unit: str | None = None,
    restval: bool = True,
    partial: bool = False,
) -> Dataset:
    """Splits train, validation and test; also restval, where it is not joined to train.

    ``restval`` says whether train has the remaining validation images too; LAVIS' list of captions,
    which serves as well as Karpathy's file, always has them. Other arguments and errors are those
    of ``karpathy.open_captions``. Downloads are in ``coco``.
    """
    joined = {"train": ("train", "restval")} if restval else {}
    listed = lists.splits(
        [
            ("train", "coco_karpathy_train.json", (_TRAIN, _VAL), 414_113 + 152_634),
            ("validation", "coco_karpathy_val.json", (_VAL,), 25_010),
            ("test", "coco_karpathy_test.json", (_VAL,), 25_010),
        ],
        lists.captions,
    )
    return karpathy.open_captions(
        "coco_captions", "coco", "dataset_coco.json", _TABLE, data_dir, source_dir, partial,
        task=task, unit=unit, joined=joined, others=[listed],
    )  # fmt: skip
