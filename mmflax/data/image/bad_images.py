"""Which images of a split cannot be read, and when they are too many.

Whatever reads examples of a data set goes through `BadImages`: training replaces a bad one
(`mmflax.data.pipeline.train_iterator`), everything else masks it out (`masked_batch`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mmflax.data.batch import Batch
from mmflax.data.dataset import IMAGES, Raw
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError, option

OnBad = Callable[[str, str], None]

# So many are waited for before judging by the examples seen so far, which at first are few.
_ENOUGH = 10
_NAMED = 3  # in the message
_LEAST = 0.01  # the smallest share that a message advises


class BadImages:
    """Counts the distinct bad examples of one process; safe from several threads.

    Args:
      size: examples of the split.
      max_fraction: share of them that may be bad, 0 up to but not 1; 0 tolerates none.
      on_bad: called once with each one's id and reason, from the thread that read it.
      whole: examples of the split that these are a sample of, which count for them.
    """

    def __init__(
        self, size: int, max_fraction: float, on_bad: OnBad | None, whole: int | None = None
    ):
        if not 0 <= max_fraction < 1:
            raise MmflaxError(
                f"max_bad_fraction is {max_fraction}; it must be 0 (none) or more, and below 1."
            )
        self.tolerated = max_fraction > 0
        self._max_fraction = max_fraction
        self._on_bad = on_bad
        self._seen = np.zeros(size, bool)
        self.size = max(size, whole or 0)
        self._reasons: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()

    def __contains__(self, index: int) -> bool:
        return index in self._reasons

    def reasons(self) -> dict[str, str]:
        """Reason by id, in the order of discovery."""
        with self._lock:
            return dict(self._reasons.values())

    def see(self, indices: Iterable[int]) -> None:
        """Notes that these examples were read."""
        with self._lock:
            self._seen[list(indices)] = True

    def add(self, index: int, raw: Raw, reason: str) -> None:
        """Notes a bad example.

        Raises:
          MmflaxError: they are more than ``max_fraction`` of the split or, from the tenth on, of
            the distinct examples seen so far.
        """
        with self._lock:
            if index in self._reasons:
                return
            self._seen[index] = True
            self._reasons[index] = (str(raw.get("id", index)), reason)
            bad, seen, size = len(self._reasons), int(self._seen.sum()), self.size
            named = [": ".join(pair) for pair in list(self._reasons.values())[:_NAMED]]
        if self._on_bad is not None:
            self._on_bad(str(raw.get("id", index)), reason)
        of_all = bad > self._max_fraction * size
        if of_all or (bad >= _ENOUGH and bad > self._max_fraction * seen):
            total = f"{size} examples" if of_all else f"{seen} examples seen so far"
            first = "; ".join(text.rstrip(".") for text in named)
            raise MmflaxError(
                f"{bad} of the {total} cannot be used for their images, more than "
                f"max_bad_fraction = {self._max_fraction:g} allows ({first}); repair or remove "
                f"them{or_tolerate([(bad, size if of_all else seen)])}."
            )


def image_fault(raw: Raw, processor: Processor) -> str | None:
    """Why an image of the example cannot be read, or None when nothing is wrong with them."""
    for key in IMAGES:
        if raw.get(key) is not None:
            try:
                processor.image(raw[key])
            except MmflaxError as error:
                return str(error)
    return None


def or_tolerate(counts: Sequence[tuple[int, int]]) -> str:
    """Of a message: ", or set …" with a share that tolerates twice as many bad ones as there are.

    Args:
      counts: of each split, how many of its examples are known to be bad, and how many it has.

    Returns:
      "" where no share below 1 tolerates them; never a share below 0.01.
    """
    bad, size = max(counts, key=lambda pair: pair[0] / pair[1])
    for share in (f"{max(_LEAST, min(2 * bad / size, 0.9)):.1g}", "0.99"):
        if bad <= float(share) * size:
            return f", or set {option('data.max_bad_fraction', share)}"
    return ""


def with_remedy(
    error: MmflaxError, raws: Sequence[Raw], processor: Processor, size: int
) -> MmflaxError:
    """The error of a batch; where an image of these examples is at fault, with what to do.

    `size` is the number of examples of the split.
    """
    for raw in raws:
        fault = image_fault(raw, processor)
        if fault is not None:
            share = or_tolerate([(1, size)])
            share = share and f"{share}, the share of examples that may be left out"
            return MmflaxError(
                f"Example {raw.get('id', '?')}: {fault.rstrip('.')}; mend it{share}."
            )
    return error


def masked_batch(
    raws: Sequence[Raw], processor: Processor, bad: BadImages, indices: Sequence[int]
) -> tuple[Batch, np.ndarray]:
    """The batch of these examples, and bool [b], false where an image cannot be read.

    Such a row is blanked and noted in ``bad`` under its place in ``indices``; where ``bad``
    tolerates none, the first one raises.
    """
    usable = np.ones(len(raws), bool)
    try:
        return processor.batch(raws), usable
    except MmflaxError as error:
        if not bad.tolerated:
            raise with_remedy(error, raws, processor, bad.size) from error
    rows = list(raws)
    for row, (raw, index) in enumerate(zip(raws, indices, strict=True)):
        fault = image_fault(raw, processor)
        if fault is not None:
            bad.add(index, raw, fault)
            rows[row], usable[row] = blanked(raw), False
    return processor.batch(rows), usable


def blanked(raw: Raw) -> Raw:
    """The example with one gray pixel for each image: it can be computed with, then ignored."""
    gray = np.full((1, 1, 3), 128, np.uint8)
    return {**raw, **{key: gray for key in IMAGES if raw.get(key) is not None}}
