"""Means of the steps' metrics since the last record, and how fast the steps were."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mmflax.training.observe import utilization


class Window:
    """Sums metrics over steps; evaluation and saving do not count as training time.

    Args:
      flops: forward and backward FLOPs of one example, for the utilization; None leaves it out.
    """

    def __init__(self, mesh: Mesh, flops: float | None):
        self._mesh, self._flops = mesh, flops
        self._sums: dict[str, np.ndarray] = {}
        self._steps = 0
        self.restart_timer()

    def restart_timer(self) -> None:
        self._started, self._stopped_for = time.perf_counter(), 0.0
        self._waited = 0.0

    @contextlib.contextmanager
    def timer_stopped(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._stopped_for += time.perf_counter() - began

    @contextlib.contextmanager
    def waiting_for_input(self) -> Iterator[None]:
        """Time in which the loop has no batch; steps that were started run on meanwhile."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def add(self, sums: Mapping[str, Any]) -> None:
        """A step's ``{name: (sum, count)}``."""
        for name, pair in sums.items():
            self._sums[name] = self._sums.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        self._steps += 1

    def close(self, rows: int, steps_left: int) -> dict[str, float]:
        """The means, the rates and the time left; the next window begins.

        Args:
          rows: of the global batch.
        """
        seconds = max(time.perf_counter() - self._started - self._stopped_for, 1e-9)
        rate = self._steps / seconds
        skipped = self._sums.pop("skipped")[0]
        self._sums.pop("skipped_in_row")
        values = {name: total / n for name, (total, n) in self._sums.items() if n}
        values = {"loss": values.pop("loss"), **values} if "loss" in values else values
        values["skipped"] = skipped
        values["steps_per_second"] = rate
        values["examples_per_second"] = rate * rows
        if self._flops is not None:
            flops = self._flops * rows * self._steps
            used = utilization(flops, seconds, list(self._mesh.devices.flatten()))
            if used is not None:
                values["mfu"] = used
        values["input_wait"] = min(1.0, self._waited / seconds)
        values["eta_seconds"] = steps_left / rate
        self._sums, self._steps = {}, 0
        self.restart_timer()
        return {name: float(value) for name, value in values.items()}
