"""``flickr30k``: Flickr photographs of people with five captions each.

Young et al. 2014, "From image descriptions to visual denotations", in the splits of Karpathy &
Fei-Fei 2015 as ``dataset_flickr30k.json`` has them: 29,000 images to train, 1,014 for validation,
1,000 for test, with five captions each.
"""

from __future__ import annotations

import os

from mmflax.data.dataset import Dataset
from mmflax.data.datasets.public import karpathy
from mmflax.data.datasets.public.prepare import Split, prepare
from mmflax.data.datasets.public.published import File

IMAGES = File(
    ("flickr30k_images", "flickr30k-images", "Images"),
    "the request form at https://shannon.cs.illinois.edu/DenotationGraph/",
    "flickr30k_images.zip",
)


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    task: str = "captioning",
    unit: str | None = None,
    partial: bool = False,
) -> Dataset:
    """Splits train, validation and test.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/flickr30k``. See
        docs/data.md.
      task: ``captioning`` (a caption is the target) or ``retrieval`` (a caption is read).
      unit: an example for each ``caption`` or each ``image``, in every split; None is what training
        and the task's evaluation need.
      partial: accept fewer captions than published, and leave out those without an image.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    karpathy.check(task, unit)
    manifest = prepare(
        "flickr30k",
        _splits(),
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="flickr30k",
        partial=partial,
    )
    splits = {name: karpathy.source(manifest, (name,), task, unit) for name in manifest["splits"]}
    info = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    return Dataset("flickr30k", splits, info)


def _splits() -> list[Split]:
    table = [
        ("train", "train", IMAGES, 145_000),
        ("validation", "val", IMAGES, 5_070),
        ("test", "test", IMAGES, 5_000),
    ]
    return karpathy.splits("dataset_flickr30k.json", table)
