"""``coco_captions``: COCO 2014 photographs with five captions each, or a few more.

Chen et al. 2015, "Microsoft COCO Captions", in the splits of Karpathy & Fei-Fei 2015: 82,783 images
to train, 30,504 more of the validation images that most work adds to train ("restval"), 5,000 for
validation, 5,000 for test (tensorflow.org/datasets/catalog/coco_captions has the same counts).
Captions: 414,113, 152,634, 25,010 and 25,010, which are all of COCO's 616,767.
"""

from __future__ import annotations

import os

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.public import karpathy
from mmflax.data.datasets.public.prepare import Split, prepare
from mmflax.data.datasets.public.published import File


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    task: str = "captioning",
    unit: str | None = None,
    restval: bool = True,
    partial: bool = False,
) -> Dataset:
    """Splits train, validation and test; also restval, where it is not joined to train.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/coco``. See docs/data.md.
      task: ``captioning`` (a caption is the target) or ``retrieval`` (a caption is read).
      unit: an example for each ``caption`` or each ``image``, in every split; None is what training
        and the task's evaluation need.
      restval: whether train has the remaining validation images too.
      partial: accept fewer captions than published, and leave out those without an image.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    karpathy.check(task, unit)
    manifest = prepare(
        "coco_captions",
        _splits(),
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="coco",
        partial=partial,
    )
    names = ("train", "validation", "test") if restval else tuple(manifest["splits"])
    joined: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    if restval:
        joined["train"] = ("train", "restval")
    splits = {name: karpathy.source(manifest, parts, task, unit) for name, parts in joined.items()}
    info = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    return Dataset("coco_captions", splits, info)


def _splits() -> list[Split]:
    train, val = (
        File((folder,), "https://cocodataset.org/#download", f"{folder}.zip")
        for folder in ("train2014", "val2014")
    )
    table = [
        ("train", "train", train, 414_113),
        ("restval", "restval", val, 152_634),
        ("validation", "val", val, 25_010),
        ("test", "test", val, 25_010),
    ]
    return karpathy.splits("dataset_coco.json", table)
