"""Sizes of the mesh by name: ``dp``, ``fsdp`` and ``fsdp+tensor``.

Several TPU slices have data over them in each, because gradients cross the network between slices
then, once a micro-batch (parameters split over it would be gathered over it in every layer), and
with Muon the matrices that the devices share.
"""

from collections.abc import Sequence
from typing import Any

# A part of a parameter has whole tiles of so many rows (TPU memory is in tiles of 8 x 128). libtpu
# 0.0.51 gathers those as they are; for others it moves rows between chips first (768 / 64 = 12
# rows), or sums whole kernels filled with 0 in place of a gather (768 / 256 = 3 rows).
ROWS = 8
# A chip has 3 % of parameters and moments then, every gather passes all of them, and the widths of
# published models leave whole tiles, also where a config only names a variant.
MOST_FSDP = 32
# Chips of a host; tensor communicates in every attention and MLP.
MOST_TENSOR = 4


def slice_count(devices: Sequence[Any]) -> int:
    """TPU slices that these devices belong to; 1 for other devices."""
    # A device of the only slice has no such attribute.
    return len({getattr(d, "slice_index", 0) for d in devices if d.platform == "tpu"}) or 1


def preset_sizes(
    name: str, devices: int, slices: int = 1, widths: Sequence[int] = (), heads: Sequence[int] = ()
) -> dict[str, int]:
    """data, fsdp and tensor of a preset.

    ``dp`` is data alone. ``fsdp`` splits parameters into the most parts that divide a slice's
    devices, up to `MOST_FSDP` and with a multiple of `ROWS` rows of every width in each; data has
    the rest. ``fsdp+tensor`` first splits attention heads and MLP columns into the most
    parts that divide a slice's devices and every number of heads, up to `MOST_TENSOR`.

    Args:
      name: ``dp``, ``fsdp`` or ``fsdp+tensor``.
      devices: of all slices together.
      slices: of equal size.
      widths: of the model's parts, as far as they are known.
      heads: numbers of attention heads of the model's parts, as far as they are known.
    """
    each = devices // slices
    tensor = fsdp = 1
    if name == "fsdp+tensor":
        tensor = max(
            n for n in _divisors(each, MOST_TENSOR) if not any(count % n for count in heads)
        )
    if name != "dp":
        fsdp = max(
            n
            for n in _divisors(each // tensor, MOST_FSDP)
            if n == 1 or not any(width % (n * ROWS) for width in widths)
        )
    return {"data": devices // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor}


def _divisors(number: int, most: int) -> list[int]:
    return [n for n in range(1, min(number, most) + 1) if number % n == 0]
