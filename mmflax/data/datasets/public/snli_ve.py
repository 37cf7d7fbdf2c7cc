"""``snli_ve``: does the photograph entail, contradict or leave open what the sentence says?

Xie et al. 2019, "Visual Entailment: A Novel Task for Fine-Grained Image Understanding". Files and
counts as github.com/necla-ml/SNLI-VE has them: 529,527 training, 17,858 development and 17,901 test
pairs over 29,783, 1,000 and 1,000 images of Flickr30k. The image is the premise, ``sentence2`` the
hypothesis; the premise's caption, ``sentence1``, is not part of the task.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.public.flickr30k import IMAGES
from mmflax.data.datasets.public.prepare import Split, prepare
from mmflax.data.datasets.public.prepared import PreparedSource
from mmflax.data.datasets.public.published import File, Found, Record, field, record
from mmflax.errors import MmflaxError

LABELS = ("entailment", "neutral", "contradiction")
_SITE = "https://github.com/necla-ml/SNLI-VE"


def build(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    source_dir: str | os.PathLike[str] | None = None,
    partial: bool = False,
) -> Dataset:
    """Splits train and validation; test if its file is there.

    Args:
      data_dir: where prepared files go; by default ``MMFLAX_DATA_DIR``, else ``~/.cache/mmflax``.
      source_dir: the downloaded files; by default ``data_dir/downloads/flickr30k``. See
        docs/data.md.
      partial: accept fewer pairs than published, and leave out those without an image.

    Raises:
      MmflaxError: see ``mmflax.data.datasets.public.prepare.prepare``.
    """
    manifest = prepare(
        "snli_ve",
        _splits(),
        data_dir=data_dir,
        source_dir=source_dir,
        downloads="flickr30k",
        partial=partial,
    )
    splits = {
        name: PreparedSource(manifest["folder"], [entry])
        for name, entry in manifest["splits"].items()
    }
    info = {"files": manifest["folder"], "left_out": manifest["left_out"]}
    return Dataset("snli_ve", splits, info)


def _splits() -> list[Split]:
    return [
        _split("train", "train", 529_527),
        _split("validation", "dev", 17_858),
        _split("test", "test", 17_901, optional=True),
    ]


def _split(name: str, published: str, count: int, optional: bool = False) -> Split:
    annotations = File((f"snli_ve_{published}.jsonl",), _SITE)
    return Split(name, (annotations,), (IMAGES,), _read, count, optional)


def _read(files: Sequence[Found]) -> Iterator[Record]:
    (file,) = files
    by_image: dict[str, list[Raw]] = {}
    for where, entry in file.lines():
        # The first release of the files spelled the key in the second way.
        key = "Flickr30K_ID" if "Flickr30K_ID" in entry else "Flikr30kID"
        image = str(field(where, entry, key, (str, int))).removesuffix(".jpg")
        label = field(where, entry, "gold_label", str)
        if label not in LABELS:
            raise MmflaxError(
                f"{where}: gold_label is {label!r}; expected one of {', '.join(LABELS)}."
            )
        by_image.setdefault(image, []).append(
            {
                "id": field(where, entry, "pairID", str),
                "image_id": image,
                "question": field(where, entry, "sentence2", str).strip(),
                "answer": label,
            }
        )
    for image, examples in by_image.items():
        yield record([f"{image}.jpg"], examples)
