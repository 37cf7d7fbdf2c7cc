"""Shuffled, sharded, batched examples by Grain, at a position that a checkpoint can hold.

Training batch ``i`` is a pure function of ``(seed, i)``: the order of an epoch is a permutation
drawn from the seed and the epoch, and an augmentation's draws come from the example's place in that
order. So the position is just the step, it continues on any number of processes, and row ``r`` of
the global batch is the same whoever reads it. Process ``p`` of ``c`` holds rows ``p*B/c`` up to
``(p+1)*B/c``, the block that its devices own.

With ``max_bad_fraction`` above 0 an image that cannot be read does not stop a run: training takes
the example that stands in the same row one batch later, so batch ``i`` stays a pure function of
``(seed, i)``; evaluation masks the row out. ``bad_images`` counts them and ends it when too many.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np

from mmflax.data.batch import Batch, check_batch, pad_rows
from mmflax.data.dataset import Raw, Source, whole_of
from mmflax.data.image.bad_images import (
    BadImages,
    OnBad,
    blanked,
    image_fault,
    masked_batch,
    with_remedy,
)
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError

# Two streams of one seed: the first word of the entropy keeps them apart.
_SHUFFLE, _AUGMENT = 0, 1

Augment = Callable[[Raw, np.random.Generator], Raw]


class EpochOrder:
    """``order[place]`` is an example's index; each run of ``size`` places is a permutation.

    Not Grain's ``shuffle``: it walks a cycle of at least 2**16 indices, which costs 0.6 ms an
    example for a source of 100 and grows as the source shrinks. Only PCG64's raw bits are used,
    which numpy keeps stable between versions, unlike ``Generator.permutation``.
    """

    def __init__(self, size: int, seed: int):
        if seed < 0:
            raise MmflaxError(f"The data seed is {seed}; it must be 0 or more.")
        self._size = size
        self._seed = seed
        # The threads' batches may lie around one epoch boundary, or several when size is small.
        self._permutation = functools.lru_cache(maxsize=4)(self._permute)

    def __getitem__(self, place: int) -> int:
        epoch, offset = divmod(place, self._size)
        return int(self._permutation(epoch)[offset])

    def _permute(self, epoch: int) -> np.ndarray:
        bits = np.random.PCG64([_SHUFFLE, self._seed, epoch])
        return np.argsort(bits.random_raw(self._size), kind="stable")


class TrainIterator:
    """Endless training batches; see ``train_iterator``."""

    def __init__(
        self,
        make_batch: Callable[[int], Batch],
        options: grain.ReadOptions,
        start: int,
        bad: BadImages,
    ):
        self._bad = bad
        self._make_batch = make_batch
        self._options = options
        self._iterator: Any = None
        self._position = 0
        self.set_position(start)

    @property
    def position(self) -> int:
        """The step of the batch that ``next`` returns next; prefetched batches do not count."""
        return self._position

    @property
    def bad(self) -> dict[str, str]:
        """Why, by id, for every example this process has replaced so far, prefetched or not."""
        return self._bad.reasons()

    def set_position(self, step: int) -> None:
        """Continues at ``step``; costs no reading of what lies before."""
        if step < 0:
            raise MmflaxError(f"The data position is {step}; it must be 0 or more.")
        self.close()
        self._position = int(step)

    def next(self) -> Batch:
        """The batch of step ``position``: the keys of ``mmflax.batch_keys.CONTRACT``, numpy."""
        if self._iterator is None:
            steps = grain.MapDataset.range(self._position, sys.maxsize).map(self._make_batch)
            self._iterator = iter(steps.to_iter_dataset(self._options))
        batch = next(self._iterator)
        self._position += 1
        return batch

    __next__ = next

    def __iter__(self) -> TrainIterator:
        return self

    def close(self) -> None:
        """Stops the reading threads; ``next`` starts them again at ``position``."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> TrainIterator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EvalBatches:
    """The batches of one pass over a split; see ``eval_batches``."""

    def __init__(self, batches: Iterator[Batch], bad: BadImages):
        self._batches = batches
        self._bad = bad

    @property
    def bad(self) -> dict[str, str]:
        """Why, by id, for every example that this process has masked out so far."""
        return self._bad.reasons()

    def __next__(self) -> Batch:
        return next(self._batches)

    def __iter__(self) -> EvalBatches:
        return self


def train_iterator(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    seed: int,
    augment: Augment | None = None,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 2,
    start: int = 0,
    max_bad_fraction: float = 0.0,
    on_bad: OnBad | None = None,
) -> TrainIterator:
    """Shuffled batches without end; a new order each epoch, and epochs run on inside a batch.

    Args:
      source: at least one example; fewer than ``batch_size`` repeat within a batch.
      processor: makes the arrays.
      batch_size: rows of the global batch, over all processes.
      seed: of the order and the augmentations.
      augment: ``(raw, generator) -> raw``, before the processor sees the example.
      process_index: of this process, which reads ``batch_size / process_count`` rows.
      process_count: how many processes share a batch.
      num_threads: threads that make batches; 0 makes them in ``next``.
      prefetch: batches ready at most, on top of one in each thread's hands.
      start: the first batch's step.
      max_bad_fraction: share of the examples whose image may be unreadable; they are replaced, and
        listed in ``bad``. 0 = the first one stops.
      on_bad: called once with the id and the reason of each, from a reading thread.

    Raises (also from ``next``, for an example that cannot be used):
      MmflaxError: naming the example, or the first of too many.
    """
    local = _local_rows(source, batch_size, process_index, process_count)
    order = EpochOrder(len(source), seed)
    bad = BadImages(len(source), max_bad_fraction, on_bad)

    def make_example(place: int, check: bool) -> Raw:
        """The example of a row; of the same row one batch later while it cannot be used."""
        for candidate in itertools.count(place, batch_size):
            index = order[candidate]
            if index in bad:
                continue
            raw = source[index]
            # A decoding more, so only asked for once a batch has failed.
            fault = image_fault(raw, processor) if check else None
            if fault is None and augment is not None:
                # The row's own draws: its replacement is augmented unlike in the later batch.
                bits = np.random.PCG64([_AUGMENT, seed, place])
                try:
                    return augment(raw, np.random.Generator(bits))
                except MmflaxError as error:
                    fault = image_fault(raw, processor) if bad.tolerated else None
                    if fault is None:
                        raise MmflaxError(f"Example {raw.get('id', '?')}: {error}") from error
            if fault is None:
                return raw
            bad.add(index, raw, fault)
        raise AssertionError("an endless count ended")

    def make_batch(step: int) -> Batch:
        first = step * batch_size + process_index * local
        places = range(first, first + local)
        if bad.tolerated:
            bad.see(order[place] for place in places)
        raws = [make_example(place, False) for place in places]
        try:
            batch = processor.batch(raws)
        except MmflaxError as error:
            if not bad.tolerated:
                raise with_remedy(error, raws, processor, bad.size) from error
            # An example that fails for another reason than its image fails again here.
            batch = processor.batch([make_example(place, True) for place in places])
        check_batch(batch)
        return batch

    return TrainIterator(make_batch, _options(num_threads, prefetch), start, bad)


def eval_batches(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 2,
    prefetch: int = 2,
    max_bad_fraction: float = 0.0,
    on_bad: OnBad | None = None,
) -> EvalBatches:
    """Every example once, in order; ``mask`` is false on the rows that fill the last batch.

    Every process yields ``ceil(len(source) / batch_size)`` batches. Filling rows repeat the last
    example under an empty ``id``: a real one cannot make a NaN, which no mask would remove. With
    ``max_bad_fraction`` above 0 a row whose image cannot be read is masked out like them, and
    listed in ``bad``; so many may be masked before an error ends the pass.
    """
    local = _local_rows(source, batch_size, process_index, process_count)
    size = len(source)
    bad = BadImages(size, max_bad_fraction, on_bad, whole_of(source))

    def make_batch(step: int) -> Batch:
        first = step * batch_size + process_index * local
        real = max(0, min(local, size - first))
        raws = [source[first + row] for row in range(real)] or [blanked(source[size - 1])]
        mask = np.arange(local) < real
        batch, usable = masked_batch(raws, processor, bad, range(first, first + len(raws)))
        mask[: len(usable)] &= usable
        batch = pad_rows(batch, local)
        batch["mask"] = mask
        batch["id"] = np.where(mask, batch["id"], "")
        check_batch(batch)
        return batch

    steps: Any = grain.MapDataset.range(-(-size // batch_size)).map(make_batch)
    batches = _closing(iter(steps.to_iter_dataset(_options(num_threads, prefetch))))
    return EvalBatches(batches, bad)


def _closing(iterator: Any) -> Iterator[Batch]:
    try:
        yield from iterator
    finally:
        iterator.close()


def _options(num_threads: int, prefetch: int) -> grain.ReadOptions:
    # Grain's buffer holds finished and unfinished batches alike, and needs one place a thread.
    return grain.ReadOptions(
        num_threads=num_threads, prefetch_buffer_size=max(1, num_threads + prefetch)
    )


def _local_rows(source: Source, batch_size: int, process_index: int, process_count: int) -> int:
    if len(source) == 0:
        raise MmflaxError("The split has no examples; nothing can be read from it.")
    if batch_size < 1 or batch_size % process_count:
        raise MmflaxError(
            f"batch_size is {batch_size}; it must be at least 1 and divide evenly among "
            f"{process_count} process{'es' * (process_count > 1)}."
        )
    if not 0 <= process_index < process_count:
        raise MmflaxError(
            f"process_index is {process_index}; with {process_count} process(es) it must lie in "
            f"0..{process_count - 1}."
        )
    return batch_size // process_count
