"""The device mesh, and the path rules that shard parameters, optimizer state and batches.

Axes: ``data`` (replicas), ``fsdp`` (parameters split, gathered when used), ``tensor`` (attention
heads and MLP columns split). The batch is split over ``data`` and ``fsdp`` together.

A rule is ``(path regex, axes)``: the first regex found in a parameter's path ``a/b/c`` decides,
``axes`` names a mesh axis (or None, or a tuple of axes) per dimension, and ``()`` replicates.
Parameters under a path segment ``layers`` have a leading depth axis, which is never split.
"""

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mmflax import paths
from mmflax.distributed.presets import slice_count
from mmflax.errors import MmflaxError

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
# What the axes that models name are split over.
LOGICAL_RULES = (("batch", BATCH_AXES), ("heads", "tensor"))


class Rule(NamedTuple):
    """An ``optional`` rule may match nothing (a model without that part)."""

    pattern: str
    axes: tuple[Any, ...]
    optional: bool = False


Rules = Sequence[Rule | tuple[Any, ...]]


# Megatron's split (Shoeybi et al. 2019, section 3): heads and fc1 by columns, out and fc2 by rows,
# so that each attention and each MLP needs one reduction. The label axis stays whole because its
# size (3129) divides by nothing useful. Embedding tables stay whole because looking up in a split
# table makes XLA replicate the activations of the whole batch.
RULES: tuple[Rule, ...] = (
    Rule(r"(^|/)(query|key|value)/kernel$", ("fsdp", "tensor", None)),
    Rule(r"(^|/)(query|key|value)/bias$", ("tensor", None), optional=True),
    Rule(r"(^|/)out/kernel$", ("tensor", None, "fsdp")),
    Rule(r"(^|/)(\w+_)?head/fc2/kernel$", ("tensor", None), optional=True),
    Rule(r"(^|/)fc1/kernel$", ("fsdp", "tensor")),
    Rule(r"(^|/)fc1/bias$", ("tensor",), optional=True),
    Rule(r"(^|/)fc2/kernel$", ("tensor", "fsdp")),
    Rule(r"(^|/)embedding$", (), optional=True),
    Rule(r"patch\w*/kernel$", (None, None, None, "fsdp"), optional=True),
    # Small, and their channels divide by little.
    Rule(r"(^|/)conv\w*/kernel$", (), optional=True),
    # A box has 4, 5 or 7 numbers.
    Rule(r"(^|/)box_projection/kernel$", (None, "fsdp"), optional=True),
    Rule(r"(^|/)kernel$", ("fsdp", None), optional=True),
    Rule(r"(^|/)(bias|scale|mean|var|temperature)$", ()),
    Rule(r"(^|/)lora_[ab]$", (), optional=True),
    Rule(
        r"(^|/)(cls|probe|position|\w+_(token|type|position|embedding|probe|scale|bias))$", (), True
    ),
)


def with_rules(rules: Rules) -> tuple[Rule, ...]:
    """A user's rules before the built-in ones, which then need not match anything."""
    return (*(Rule(*rule) for rule in rules), *(rule._replace(optional=True) for rule in RULES))


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Mesh data x fsdp x tensor over all devices; one size may be -1 (all devices left).

    With several TPU slices the data axis crosses the slow network between them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    asked = "x".join(str(size) for size in sizes)
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise MmflaxError(
            f"mesh data x fsdp x tensor = {asked}: sizes must be positive, and at most one may be "
            "-1 (meaning: all devices left)"
        )
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise MmflaxError(
            f"mesh data x fsdp x tensor = {asked} does not fit {len(devices)} devices: the product "
            "must equal the number of devices (write -1 for one axis to fill it)"
        )
    slices = slice_count(devices)
    if slices > 1:
        if sizes[0] % slices:
            raise MmflaxError(
                f"mesh axis data = {sizes[0]} must be a multiple of the {slices} TPU slices"
            )
        inner = (sizes[0] // slices, sizes[1], sizes[2])
        # An axis such as fsdp = 32 on 16x16 chips needs a part of a dimension of the torus.
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices=devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(
            tuple(sizes), devices=devices, allow_split_physical_axes=True
        )
    # Explicit axes, the default elsewhere, make linen's logical constraints raise.
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_specs(params: Any, rules: Rules, mesh: Mesh) -> Any:
    """Tree of NamedSharding for a tree of (abstract) parameters, decided by the rules.

    Raises:
      MmflaxError: listing every unmatched parameter, idle rule, dimension that its mesh axes do not
        divide, rule of the wrong rank, unknown mesh axis, or mesh axis used twice.
    """
    rows = [Rule(*rule) for rule in rules]
    idle = {row.pattern for row in rows if not row.optional}
    splits = mesh.size > mesh.shape["data"]
    problems: list[str] = []

    def place(name: str, leaf: Any) -> NamedSharding:
        row = next((row for row in rows if re.search(row.pattern, name)), None)
        if row is None:
            if splits:
                problems.append(f"no rule matches parameter {name} {list(leaf.shape)}")
            return NamedSharding(mesh, PartitionSpec())
        idle.discard(row.pattern)
        axes = tuple(row.axes)
        if axes and "layers" in name.split("/")[:-1]:
            axes = (None, *axes)
        problem = _problem(axes, leaf.shape, mesh)
        if problem:
            problems.append(f"rule {row.pattern!r} -> {row.axes} on {name}: {problem}")
            axes = ()
        return NamedSharding(mesh, PartitionSpec(*axes))

    specs = paths.map_leaves(place, params)
    problems += [f"rule {pattern!r} matches no parameter (remove it)" for pattern in sorted(idle)]
    if problems:
        shown = "; ".join(problems[:8])
        more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
        hint = ""
        if "no rule matches" in shown:
            hint = (
                "; add a (path regex, axes) pair to mesh.rules, such as (r'/gamma$', ()), whose () "
                "keeps the parameter whole on every device"
            )
        raise MmflaxError(f"the mesh rules do not fit the model: {shown}{more}{hint}")
    return specs


def state_shardings(state: Any, rules: Rules, mesh: Mesh) -> Any:
    """Shardings of a whole train state: moments and averages are sharded like their parameter.

    A leaf belongs to a parameter if its path ends in the parameter's and the shapes agree. All else
    is replicated: counters, keys, Adafactor's factored moments.
    """
    params = state.params
    if state.frozen is not None:
        params = paths.union(params, state.frozen)
    specs = param_specs(params, rules, mesh)
    shapes = jax.tree.leaves(params)
    known = {
        tuple(path.split("/")): (leaf.shape, spec)
        for (path, spec), leaf in zip(paths.leaves(specs).items(), shapes, strict=True)
    }
    replicated = NamedSharding(mesh, PartitionSpec())

    def place(path: str, leaf: Any) -> Any:
        segments = tuple(path.split("/"))
        for start in range(len(segments)):
            if segments[start:] in known:
                shape, spec = known[segments[start:]]
                return spec if shape == leaf.shape else replicated
        return replicated

    placed = paths.map_leaves(place, state)
    return placed if state.frozen is not None else placed.replace(params=specs)


def layout(params: Any, specs: Any) -> str:
    """``path [shape] spec``, one parameter per line: the text of golden layouts."""
    lines = []
    for (path, leaf), spec in zip(
        paths.leaves(params).items(), jax.tree.leaves(specs), strict=True
    ):
        axes = ", ".join("-" if axis is None else str(axis) for axis in spec.spec)
        lines.append(f"{path} {list(leaf.shape)} ({axes})")
    return "\n".join(lines) + "\n"


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over ``data`` and ``fsdp``, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def data_shard(mesh: Mesh) -> tuple[int, int]:
    """(index, count): the part of every batch that this process loads.

    Processes whose devices hold the same rows (the tensor axis spans them) share an index and must
    load the same rows.
    """
    size = _batch_shards(mesh)
    rows: dict[int, set[int]] = {}
    places: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((size,))
    for device, (piece,) in places.items():
        start, stop, _ = piece.indices(size)
        rows.setdefault(device.process_index, set()).update(range(start, stop))
    groups = sorted({tuple(sorted(part)) for part in rows.values()})
    flat = [row for group in groups for row in group]
    if flat != list(range(size)) or len({len(group) for group in groups}) > 1:
        raise MmflaxError(
            f"mesh {dict(mesh.shape)}: the processes' devices do not hold equal separate parts of "
            "the batch; make tensor (or data x fsdp) a multiple of the devices of one process"
        )
    return groups.index(tuple(sorted(rows[jax.process_index()]))), len(groups)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows -> the global batch on the mesh.

    Raises:
      MmflaxError: if the global batch does not divide over data x fsdp.
    """
    sharding = batch_sharding(mesh)
    _, count = data_shard(mesh)
    shards = _batch_shards(mesh)
    placed = {}
    for name, value in batch.items():
        value = np.asarray(value)
        rows = value.shape[0] * count
        if rows % shards:
            raise MmflaxError(
                f"batch of {rows} does not divide over data x fsdp = {shards} devices: make the "
                f"batch size a multiple of {shards}"
            )
        placed[name] = jax.make_array_from_process_local_data(
            sharding, value, (rows, *value.shape[1:])
        )
    return placed


@contextlib.contextmanager
def activation_rules(mesh: Mesh) -> Iterator[None]:
    """Context in which a traced model's ``constrain_batch`` splits the batch axis over the mesh.

    Attention kernels that XLA cannot split also read here which axes split examples and heads.
    """
    with jax.set_mesh(mesh), nn.logical_axis_rules(LOGICAL_RULES):
        yield


def on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """A jitted function, called and so traced under ``activation_rules(mesh)``."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with activation_rules(mesh):
            return function(*args, **kwargs)

    return wrapped


def trace_step(
    function: Callable[..., Any], state: Any, batch: Mapping[str, Any], mesh: Mesh
) -> Any:
    """Trace ``(state, batch) -> (state, metrics)``; the state is donated.

    ``state`` and ``batch`` are arrays or shapes with shardings; metrics come back replicated.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (state, batch))
    jitted = jax.jit(
        function,
        in_shardings=shardings,
        out_shardings=(shardings[0], NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )
    with activation_rules(mesh):
        return jitted.trace(state, batch)


def compile_step(
    function: Callable[..., Any], state: Any, batch: Mapping[str, Any], mesh: Mesh
) -> Any:
    """Compile ahead of time what ``trace_step`` traces."""
    traced = trace_step(function, state, batch, mesh)
    with activation_rules(mesh):
        return traced.lower().compile()


def _batch_shards(mesh: Mesh) -> int:
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def _problem(axes: tuple[Any, ...], shape: tuple[int, ...], mesh: Mesh) -> str | None:
    """What is wrong with these axes for this shape, or None."""
    groups = [
        () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis) for axis in axes
    ]
    used = [axis for group in groups for axis in group]
    unknown = [axis for axis in used if axis not in mesh.shape]
    if unknown:
        return f"mesh has no axis {unknown[0]!r}, only {', '.join(mesh.shape)}"
    if len(used) != len(set(used)):
        return "the same mesh axis splits two dimensions"
    if axes and len(axes) != len(shape):
        return f"{len(axes)} axes for shape {list(shape)}"
    for size, group in zip(shape, groups, strict=False):
        parts = math.prod(mesh.shape[axis] for axis in group)
        if size % parts:
            return f"dimension {size} of {list(shape)} does not divide by {'x'.join(group)}={parts}"
    return None
