"""Examples as the model gets them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmflax.data import pipeline
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.run.build import Experiment
from mmflax.run.check import check


@dataclasses.dataclass(frozen=True)
class Shown:
    """What `mmflax data` draws."""

    dataset: Dataset
    processor: Processor
    batch: Mapping[str, np.ndarray]


def first_batch(config: Mapping[str, Any], split: str, rows: int) -> Shown:
    """The first ``rows`` examples of a split as the model gets them; train in training's order."""
    experiment = Experiment(config)
    check(experiment)
    dataset = experiment.dataset()
    processor = experiment.learn_processor(dataset)
    source = dataset.source(split)
    if split == "train":
        with pipeline.train_iterator(
            source,
            processor,
            batch_size=rows,
            seed=experiment.seed,
            augment=experiment.augment(),
            num_threads=0,
        ) as batches:
            batch = next(batches)
    else:
        batch = processor.batch([source[i] for i in range(min(rows, len(source)))])
    return Shown(dataset, processor, batch)
