"""Examples as the model gets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmflax.data import pipeline
from mmflax.data.dataset import Dataset, Raw
from mmflax.data.image.bad_images import BadImages, masked_batch
from mmflax.data.processor import Processor
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.decide import opened
from mmflax.run.finetune.resolve import resolved


@dataclasses.dataclass(frozen=True)
class Shown:
    """What `mmflax data` draws; `bad` says by id why examples before these were left out, and
    `decided` what the data decide of the config."""

    dataset: Dataset
    processor: Processor
    batch: Mapping[str, np.ndarray]
    bad: Mapping[str, str]
    notes: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()


def first_batch(config: Mapping[str, Any], split: str, rows: int) -> Shown:
    """The first ``rows`` examples of a split as the model gets them; train in training's order.

    As in training and evaluation, ``data.max_bad_fraction`` may be unreadable, and are passed over.
    """
    experiment = Experiment(resolved(config))
    check(experiment)
    dataset = experiment.dataset()
    notes: list[str] = []
    experiment, processor, decided = opened(experiment, dataset, say=notes.append)
    source = dataset.source(split)
    fraction = experiment.data.max_bad_fraction
    if split == "train":
        with pipeline.train_iterator(
            source,
            processor,
            batch_size=rows,
            seed=experiment.seed,
            augment=experiment.augment(),
            num_threads=0,
            max_bad_fraction=fraction,
        ) as batches:
            batch = next(batches)
            return Shown(dataset, processor, batch, batches.bad, tuple(notes), decided)
    bad = BadImages(len(source), fraction, None)
    kept: list[Raw] = []
    for index in range(len(source)):
        raw = source[index]
        if not bad.tolerated or masked_batch([raw], processor, bad, [index])[1].all():
            kept.append(raw)
        if len(kept) == rows:
            break
    batch = processor.batch(kept)
    return Shown(dataset, processor, batch, bad.reasons(), tuple(notes), decided)
