"""A step's time from published peaks: compute, memory and network (Williams et al. 2009).

The formulas of the network are those of the scaling book (jax-ml.github.io/scaling-book), part 3,
"Sharded matrices": what a chip sends in a ring, over the bandwidth to both of its neighbors.
"""

import dataclasses
from collections.abc import Sequence

from mmflax.distributed.chips import Chip
from mmflax.distributed.collectives import Collective


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
    """Seconds of one step on one chip, each from a peak alone.

    Attributes:
      compute: of the floating-point operations.
      memory: of the traffic to HBM.
      network_exposed: of collectives that the program waits for, within and between slices.
      network_overlapped: of those that it computes beside.
      dcn: what of both is between slices.
      step: max(compute, memory, network_overlapped) + network_exposed: what can be at the same
        time is, and nothing else takes time. So it is a lower bound of what the program takes.
      share_of_peak: compute / step, the FLOP utilization that this bound allows.
      bound: which is the largest: "compute", "memory" or "network" (either of both).
    """

    compute: float
    memory: float
    network_exposed: float
    network_overlapped: float
    dcn: float
    step: float
    share_of_peak: float
    bound: str


def roofline(
    flops: float,
    memory_bytes: float,
    sent: Sequence[Collective],
    chip: Chip,
    slices: int = 1,
    across: Sequence[str] = ("data",),
) -> Roofline:
    """The bound of one step.

    Assumed of the network:

    * Each mesh axis is a closed ring over one axis of the torus, used in both directions. A torus
      axis without wraparound links (v5e and v6e below 16 chips, v4 and v5p below a whole cube) has
      half of that bandwidth, and a mesh axis that lies over two torus axes has twice.
    * A collective over k mesh axes uses the rings of k torus axes, at most as many as the chip has.
    * A permute has its opposite beside it, as in a collective matmul; alone it takes twice as long.
    * A switch (NVLink) gives every ring the chip's whole bandwidth.
    * Collectives do not wait for each other, yet they run one after the other; no latency per hop.
    * A collective that joins slices (``Collective.slices``) is over the chip's share of its host's
      network. One over axes that lead ``across`` slices is hierarchical: of what a chip sends in a
      ring of n chips over s slices, (s-1)/(n-1) goes between slices and the rest stays within; for
      an all-to-all, (n-n/s)/(n-1); for a permute, everything.

    Args:
      flops: of one chip in one step.
      memory_bytes: read from and written to HBM by one chip in one step.
      sent: the step's collectives.
      chip: the device that runs it.
      slices: that the mesh spans, or hosts of GPUs, in a program whose collectives are of all of
        them. libtpu's are of one slice each, with explicit exchanges: leave it at 1.
      across: mesh axes that lead from slice to slice, where there are several.
    """
    inside, outside = [0.0, 0.0], [0.0, 0.0]  # exposed, overlapped
    for one in sent:
        crossing = float(one.slices > 1)
        if not crossing and slices > 1 and (set(one.axes) & set(across) or not one.axes):
            crossing = _crossing(one, slices)
        total = one.bytes * one.times
        outside[one.overlapped] += total * crossing / chip.dcn
        inside[one.overlapped] += total * (1 - crossing) / _bandwidth(one, chip)
    exposed, overlapped = inside[False] + outside[False], inside[True] + outside[True]
    compute, memory = flops / chip.flops, memory_bytes / chip.memory_bandwidth
    step = max(compute, memory, overlapped) + exposed
    terms = {"compute": compute, "memory": memory, "network": max(exposed, overlapped)}
    return Roofline(
        compute=compute,
        memory=memory,
        network_exposed=exposed,
        network_overlapped=overlapped,
        dcn=sum(outside),
        step=step,
        share_of_peak=compute / step if step else 0.0,
        bound=max(terms, key=lambda name: terms[name]),
    )


def _crossing(one: Collective, slices: int) -> float:
    """The share of a collective's bytes that goes between slices."""
    n, s = one.group, min(slices, one.group)
    if one.kind == "collective-permute":
        return 1.0
    if one.kind == "all-to-all":
        return (n - n / s) / (n - 1)
    return (s - 1) / (n - 1)


def _bandwidth(one: Collective, chip: Chip) -> float:
    """Bytes/s that a chip sends in this collective, within a slice."""
    rings = min(max(1, len(one.axes)), chip.axes)
    if one.kind == "collective-permute":
        return chip.ring
    if one.kind != "all-to-all" or chip.axes == 1:
        return chip.ring * rings
    # A chip's parts travel n/4 links of a ring on average, in each of the dimensions (the scaling
    # book: a quarter of an all-gather's time, whose operand is all n parts).
    side: float = one.group ** (1 / rings)
    return chip.ring * 4 * (one.group - 1) / (side * one.group)
