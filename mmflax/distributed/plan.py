"""Ahead-of-time compilation for a TPU topology: bytes, FLOPs, collectives and time of a step.

libtpu compiles for a named topology on any Linux machine (`pip install "mmflax[aot]"`), so whether
a run fits into memory, and what it costs, is known before a TPU slice is requested.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from mmflax.distributed.chips import Chip, chip_of
from mmflax.distributed.collectives import Collective, collectives
from mmflax.distributed.flops import jaxpr_flops
from mmflax.distributed.mesh import activation_rules, trace_step
from mmflax.distributed.roofline import Roofline, roofline
from mmflax.errors import MmflaxError, option

# What libtpu says of a program that does not fit, in two versions.
_USED = r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm"
_NEEDED = r"\(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)"
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one chip while the step runs.

    Attributes:
      parameters, frozen, optimizer, average: of the train state.
      batch: of the arguments all that is no state.
      gradients: of the trained parameters, in their own type.
      activations: what the forward pass keeps for the backward pass, by the model's arithmetic, at
        most what the compiler has beside the gradients.
      workspace: what remains of the compiler's temporaries.
      code: of the program.
      limit: of the chip; None where it is not known.
    """

    parameters: int
    frozen: int
    optimizer: int
    average: int
    batch: int
    gradients: int
    activations: int
    workspace: int
    code: int = 0
    limit: int | None = None

    @property
    def parts(self) -> dict[str, int]:
        """Everything but the limit, by name."""
        fields = dataclasses.asdict(self)
        fields.pop("limit")
        return fields

    @property
    def state(self) -> int:
        """The compiler's figure for the arguments: train state and batch."""
        return self.parameters + self.frozen + self.optimizer + self.average + self.batch

    @property
    def temporary(self) -> int:
        """The compiler's figure for temporaries."""
        return self.gradients + self.activations + self.workspace

    @property
    def total(self) -> int:
        """All of it; the state is updated in place, so it counts once."""
        return sum(self.parts.values())


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a step needs, per chip unless said otherwise.

    Attributes:
      kind: of the chips, as JAX names it.
      chips: devices of the mesh, as JAX counts them.
      mesh: its axes and their sizes.
      batch_size: rows of the global batch.
      memory: bytes.
      model_flops: of a step on all chips, without what rematerialization computes again; attention
        that never builds its matrix computes some products again, which count.
      flops: of a step on all chips, with it.
      traffic: an estimate of the bytes that a step reads from and writes to the chip's memory.
      sent: the collectives of a step.
      roofline: the shortest time that a step can take; None for chips without published figures.
      seconds: to trace and compile.
    """

    kind: str
    chips: int
    mesh: Mapping[str, int]
    batch_size: int
    memory: Memory
    model_flops: int
    flops: int
    traffic: int
    sent: tuple[Collective, ...]
    roofline: Roofline | None
    seconds: float

    @property
    def recomputed(self) -> float:
        """FLOPs that rematerialization adds, as a share of the model's own."""
        return self.flops / self.model_flops - 1


class TooLarge(MmflaxError):
    """The step does not fit into a chip's memory.

    Attributes:
      excess: bytes beyond it, where the compiler says so.
    """

    def __init__(self, message: str, excess: int | None):
        super().__init__(message)
        self.excess = excess


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


def plan(
    step: Callable[..., Any],
    state: Any,
    batch: Mapping[str, Any],
    mesh: Mesh,
    *,
    kept: int = 0,
    accumulate: int = 1,
    model_flops: int | None = None,
    computed: Any = None,
    see: Callable[[str], object] = lambda text: None,
) -> Plan:
    """Compile the program that training would run, without executing it.

    Args:
      step: ``(state, batch) -> (state, metrics)``.
      state: of training, as shapes with shardings on ``mesh``.
      batch: the same.
      mesh: of the chips.
      kept: bytes on a chip that the forward pass of a micro-batch keeps for the backward pass.
      accumulate: micro-batches of the step.
      model_flops: of a step, without what is computed again; by default those of ``step``.
      computed: dtype that the model computes in; by default that of the parameters.
      see: is given the compiled program's text.

    Raises:
      TooLarge: it does not fit into a chip's memory, with the compiler's figures.
    """
    began = time.perf_counter()
    traced = trace_step(step, state, batch, mesh)
    flops = jaxpr_flops(traced.jaxpr.jaxpr)
    compiled = _compiled(traced, mesh)
    text = compiled.as_text()
    see(text)
    device = mesh.devices.flat[0]
    chip = chip_of(device.device_kind)
    memory = _memory(compiled.memory_analysis(), state, kept, chip)
    sent = collectives(text, mesh)
    traffic = _traffic(memory, state, computed, mesh.shape["tensor"], accumulate)
    return Plan(
        kind=device.device_kind,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        batch_size=jax.tree.leaves(batch)[0].shape[0],
        memory=memory,
        model_flops=flops if model_flops is None else model_flops,
        flops=flops,
        traffic=traffic,
        sent=sent,
        roofline=None if chip is None else roofline(flops / mesh.size, traffic, sent, chip),
        seconds=time.perf_counter() - began,
    )


def _compiled(traced: Any, mesh: Mesh) -> Any:
    try:
        with activation_rules(mesh):
            return traced.lower().compile()
    except Exception as error:
        text = " ".join(str(error).split())
        if "hbm" not in text.lower() and "RESOURCE_EXHAUSTED" not in text:
            raise
        found = re.search(_USED, text) or re.search(_NEEDED, text)
        excess, figures = None, text[:200]
        if found is not None:
            needed, had = (float(found[i]) * _UNITS[found[i + 1]] for i in (1, 3))
            excess = int(needed - had)
            figures = (
                f"the compiler counts {needed / 2**20:,.0f} MiB and has {had / 2**20:,.0f}, "
                f"{excess / 2**20:,.0f} too few"
            )
        raise TooLarge(
            f"The step does not fit into the memory of one of {mesh.size} chips ({figures}); give "
            f"{option('mesh.fsdp', 2 * mesh.shape['fsdp'])}, a larger --config.train.accumulate=N, "
            "--config.model.text_encoder.remat=full (and the image encoder's and the fusion's), or "
            "a smaller --config.data.batch_size=ROWS.",
            excess,
        ) from error


def _memory(found: Any, state: Any, kept: int, chip: Chip | None) -> Memory:
    """The compiler's figures, split by the shapes of the state and what the model keeps."""
    parts = {
        "parameters": shard_bytes(state.params),
        "frozen": shard_bytes(state.frozen),
        "optimizer": shard_bytes(state.opt_state),
        "average": shard_bytes(state.ema),
    }
    temporary = found.temp_size_in_bytes
    gradients = min(parts["parameters"], temporary)
    activations = min(kept, temporary - gradients)
    return Memory(
        **parts,
        batch=found.argument_size_in_bytes - sum(parts.values()),
        gradients=gradients,
        activations=activations,
        workspace=temporary - gradients - activations,
        code=found.generated_code_size_in_bytes,
        limit=None if chip is None else int(chip.memory),
    )


def _traffic(
    memory: Memory, state: Any, computed: Any, tensor: int = 1, accumulate: int = 1
) -> int:
    """Bytes between a chip's memory and its cores, an estimate: each parameter is read for the
    forward and the backward pass of each micro-batch in the type that computes, what the backward
    pass needs is written and read, gradients are written and read, and optimizer state and
    parameters are read and written.

    What is computed again, and what a layer writes for the next, is left out; tables of which a
    lookup reads a few rows count whole.
    """
    whole = sum(leaf.size for leaf in jax.tree.leaves((state.params, state.frozen)))
    width = 4 if computed is None else jax.numpy.dtype(computed).itemsize
    each = 2 * whole // tensor * width + 2 * memory.activations
    updated = memory.parameters + memory.optimizer + memory.average + memory.gradients
    return int(accumulate * each + 2 * updated)


def shard_bytes(tree: Any) -> int:
    """Bytes of one chip's part of the arrays, of which the shardings are known."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def kept_bytes(function: Callable[..., Any], params: Any, fixed: Any, rows: int) -> int:
    """Bytes that a forward pass of so many rows keeps for the backward pass, as they grow with
    them: neither parameters nor what is made of them alone.

    Args:
      function: ``(params, fixed, rows) -> scalar``; rematerialization counts as it is set.
      params: what is differentiated, as arrays or shapes.
      fixed: other arrays or shapes.
      rows: of one chip.
    """

    def kept(rows: int) -> int:
        def backward(params: Any, fixed: Any) -> Any:
            return jax.vjp(lambda params: function(params, fixed, rows), params)[1]

        return _sizes(jax.tree.leaves(jax.eval_shape(backward, params, fixed)))

    return rows * max(0, kept(2) - kept(1))


def _sizes(leaves: Sequence[Any]) -> int:
    return sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in leaves
        if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    )
