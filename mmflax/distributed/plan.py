"""Ahead-of-time compilation for a TPU topology: memory per chip and collectives.

libtpu compiles for a named topology on any Linux machine (`pip install "mmflax[aot]"`), so whether
a run fits into memory is known before a TPU slice is requested.
"""

import dataclasses
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mmflax.distributed.mesh import compile_step
from mmflax.errors import MmflaxError, option

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory of one chip in bytes, and the program's collectives.

    Attributes:
      chips: of the topology.
      state: bytes of the train state and the batch.
      parts: of these, bytes of trained and frozen parameters, optimizer state and average.
      temporary: bytes of activations, gradients and workspace at the peak.
      collectives: kind -> occurrences in the program; one inside a loop counts once.
      seconds: to compile.
    """

    chips: int
    state: int
    parts: Mapping[str, int]
    temporary: int
    collectives: Mapping[str, int]
    seconds: float


# What libtpu takes a topology's name to be; the shape is in chips.
FAMILIES = "v2:4x4, v3:8x8, v4:2x2x4, v5e:4x4, v5p:2x2x4, v6e:16x16 or tpu7x:2x2x4"
# Without these libtpu looks for a cloud machine's metadata, for the other hosts of a slice and for
# a chip to open, and prints what it does not find.
_NO_TPU_HERE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology such as ``v5e:4x4``, or of equal slices of it, ``v5e:16x16*2``.

    Several slices are joined by the data-center network; their devices have a ``slice_index``. A
    chip of v2, v3 and tpu7x is two devices. Call before anything else has touched a device.

    Raises:
      MmflaxError: libtpu is not installed, or it does not know the topology.
    """
    for variable, value in _NO_TPU_HERE.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    try:
        import libtpu  # noqa: F401
    except ModuleNotFoundError:
        raise MmflaxError(
            'Planning for a TPU needs libtpu, which is missing; run: pip install "mmflax[aot]".'
        ) from None
    from jax.experimental import topologies

    slice_name, star, slices = name.partition("*")
    # A chip of v4 is one device in training, and two here by default.
    fields: dict[str, Any] = {"chip_config_name": "megacore"} if name.startswith("v4:") else {}
    try:
        if star:
            if not slices.isdecimal() or int(slices) < 2:
                raise ValueError(f"after * stands {slices!r}, not a number of slices above 1")
            fields["num_slices"] = int(slices)
        return list(topologies.get_topology_desc(slice_name, platform="tpu", **fields).devices)
    except Exception as error:
        text = " ".join(str(error).split()).removeprefix("INVALID_ARGUMENT: ")[:200]
        raise MmflaxError(
            f"--topology {name!r} is not one that libtpu knows ({text}); expected a family and its "
            f"chips, such as {FAMILIES}, with *N behind it for N slices."
        ) from error


def plan(step: Callable[..., Any], state: Any, batch: Mapping[str, Any], mesh: Mesh) -> Plan:
    """Compile the program that training would run, without executing it.

    ``state`` and ``batch`` are shapes with shardings on ``mesh``.

    Raises:
      MmflaxError: it does not fit into a chip's memory, with the compiler's figures.
    """
    began = time.perf_counter()
    try:
        compiled = compile_step(step, state, batch, mesh)
    except Exception as error:
        text = " ".join(str(error).split())
        if "hbm" not in text.lower() and "RESOURCE_EXHAUSTED" not in text:
            raise
        figures = re.search(r"(Used [^.]*? of [^.]*?hbm[^.]*\.[^.]*)\.", text)
        raise MmflaxError(
            f"The step does not fit into the memory of one of {mesh.size} chips "
            f"({figures[1] if figures else text[:200]}); give "
            f"{option('mesh.fsdp', 2 * mesh.shape['fsdp'])}, a larger --config.train.accumulate=N, "
            "--config.model.text_encoder.remat=full (and the image encoder's and the fusion's), or "
            "a smaller --config.data.batch_size=ROWS."
        ) from error
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    counts = Counter(
        kind for kind in COLLECTIVES for _ in re.finditer(rf"= .*? {kind}(?:-start)?\(", text)
    )
    return Plan(
        chips=mesh.size,
        state=memory.argument_size_in_bytes,
        parts={
            name: sum(map(_bytes, jax.tree.leaves(tree)))
            for name, tree in (
                ("trained", state.params),
                ("frozen", state.frozen),
                ("optimizer", state.opt_state),
                ("average", state.ema),
            )
        },
        temporary=memory.temp_size_in_bytes,
        collectives=dict(counts),
        seconds=time.perf_counter() - began,
    )


def _bytes(leaf: Any) -> int:
    """Of one chip's part of an array."""
    return int(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize)
