"""What trains, and how long a step takes there by estimate: nothing is timed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

from mmflax.training import observe

# What a training of small models reaches: FLOP/s of a CPU core, the share of an accelerator's peak,
# steps/s of any machine, and decoded pixels/s of a core.
CORE_FLOPS, PEAK_SHARE, OTHER_FLOPS = 33e9, 0.1, 5e12
STEPS_PER_SECOND, PIXELS_PER_SECOND = 100.0, 60e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """What trains.

    Attributes:
      kind: of its devices.
      devices: how many.
      cores: of this process.
      shards: into which a batch is split.
    """

    kind: str = "cpu"
    devices: int = 1
    cores: int = 2
    shards: int = 1

    @classmethod
    def of(cls, devices: Sequence[Any], shards: int) -> Machine:
        """Of these jax devices."""
        kind = "cpu" if devices[0].platform == "cpu" else devices[0].device_kind
        return cls(kind=kind, devices=len(devices), cores=available_cores(), shards=shards)

    @property
    def name(self) -> str:
        """Such as "2 cores" or "4 TPU v4"."""
        count, what = (self.cores, "core") if self.kind == "cpu" else (self.devices, self.kind)
        return f"{count} {what}{'s' * (self.kind == 'cpu' and count != 1)}"

    def seconds(self, batch: int, work: float, pixels: int) -> float:
        """Of a step, about.

        Args:
          batch: examples of the step.
          work: FLOPs of each.
          pixels: that are decoded of each.
        """
        decoding = batch * pixels / (PIXELS_PER_SECOND * self.cores)
        if self.kind == "cpu":  # the same cores do both
            return max(batch * work / (CORE_FLOPS * self.cores) + decoding, 1 / STEPS_PER_SECOND)
        peak = observe.peak_flops(self.kind)
        rate = OTHER_FLOPS if peak is None else PEAK_SHARE * peak
        return max(batch * work / (rate * self.devices), decoding, 1 / STEPS_PER_SECOND)


def available_cores() -> int:
    """CPU cores that this process may use."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    try:  # a container's share
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
