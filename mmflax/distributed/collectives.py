"""Every collective of a compiled program: over which mesh axes, how many bytes, how often."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator

from jax.sharding import AbstractMesh, Mesh

from mmflax.distributed import hlo
from mmflax.distributed.groups import Groups

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_SPELLINGS = {kind: kind for kind in KINDS} | {"ragged-all-to-all": "all-to-all"}
_KINDS = _SPELLINGS | {f"{spelling}-start": kind for spelling, kind in _SPELLINGS.items()}

_STARTS = {"async-start", "recv", *(f"{spelling}-start" for spelling in _SPELLINGS)}
_ENDS = {
    "async-update",
    "async-done",
    "recv-done",
    *(f"{spelling}-done" for spelling in _SPELLINGS),
}

# What takes no time to speak of, or is itself communication: nothing hides behind these.
_IDLE = set(_KINDS) | {
    "", "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "copy", "iota",
    "after-all", "send", "partition-id", "replica-id", "opt-barrier", "add-dependency",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, order=True)
class Collective:
    """Equal collectives of a program.

    Attributes:
      kind: one of ``KINDS``.
      axes: of the mesh, along which the members of a group differ, in the mesh's order; () where
        the text does not tell.
      bytes: that one chip sends (and receives) over the network in one execution, in a ring of n
        chips: all-gather (n-1)/n of the result, reduce-scatter (n-1)/n of the operand, all-reduce
        2 (n-1)/n, all-to-all (n-1)/n, collective-permute the operand. Padding is not counted.
      group: n, the chips that take part together.
      times: executions in one run of the program.
      overlapped: the program computes between its start and its end. See ``collectives``.
      slices: that it joins, over the network between them; 1 for what stays within a slice.
      exact: False inside a loop whose number of iterations the text does not tell (1 is assumed).
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    group: int
    times: int
    overlapped: bool
    slices: int = 1
    exact: bool = True


def collectives(hlo_text: str, mesh: Mesh | AbstractMesh) -> tuple[Collective, ...]:
    """The collectives of an SPMD program, from ``compiled.as_text()``; largest traffic first.

    A loop's body counts once for every iteration. Every branch of a conditional counts as taken.
    A group of one chip moves nothing, a loop of no iterations runs nothing: they are left out.

    Overlapped means that the schedule has an instruction that computes (a fusion, a product, a
    loop, a kernel) between the start of the collective and the wait for it:

    * pairs ``all-gather-start`` … ``all-gather-done`` and ``async-start`` … ``async-done``, also
      inside the loops of a collective matmul ("windowed dot general"), which multiplies one shard
      while the next is under way (Wang et al. 2023, "Overlap communication with dependent
      computation via decomposition");
    * ``recv`` … ``recv-done`` between slices;
    * libtpu's asynchronous fusions, from the fusion with ``AsyncCollectiveStart`` to that with
      ``AsyncCollectiveDone``; the fusions between them, which carry the same collective on, are
      not counted again.

    Everything else is exposed: the chip waits for it. How much of an overlapped one the
    computation hides is not looked at.

    A program for several slices is compiled for each of them, with the exchange between slices as
    ``send`` … ``recv-done`` that its host carries out; such a pair is one collective of ``slices``.

    libtpu writes a reduce-scatter as an all-reduce inside a fusion whose result is smaller; it is
    counted as a reduce-scatter.
    """
    module = hlo.parse(hlo_text)
    if not module.entry:
        return ()
    groups = Groups(mesh)
    carried = _carried(module)
    partitions = re.search(r"num_partitions=(\d+)", hlo_text.partition("\n")[0])
    between = groups.between_slices(int(partitions[1]) if partitions else mesh.size)
    # How often a computation runs: {(overlapped, exact): times}.
    runs: dict[str, dict[tuple[bool, bool], int]] = defaultdict(lambda: defaultdict(int))
    runs[module.entry][False, True] = 1
    found: dict[Collective, int] = defaultdict(int)
    for computation in reversed(list(module.computations.values())):
        if not runs[computation.name]:
            continue
        hidden = _hidden(module, computation)
        for instruction in computation.instructions.values():
            inside = instruction.name in hidden
            for callee, times, exact in _calls(module, computation, instruction):
                for (outer, sure), count in runs[computation.name].items():
                    runs[callee][outer or inside, sure and exact] += times * count
            one = None
            if instruction.opcode == "send":
                one = _between(computation, instruction, *between)
            elif instruction.opcode in _KINDS and computation.name not in carried:
                one = _collective(computation, instruction, groups)
            if one is None:
                continue
            for (outer, sure), count in runs[computation.name].items():
                if one.group > 1 and one.bytes > 0:
                    one = dataclasses.replace(one, overlapped=outer or inside, exact=sure)
                    found[one] += count
    merged = (dataclasses.replace(one, times=times) for one, times in found.items() if times)
    return tuple(sorted(merged, key=lambda one: (-one.bytes * one.times, one)))


def _calls(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Iterator[tuple[str, int, bool]]:
    """(computation, times for each execution, whether that is known)."""
    times: int | None = 1
    names = [name for name in hlo.called(instruction) if name in module.computations]
    if instruction.opcode == "while":
        times = hlo.trip_count(module, instruction, computation)
    for name in names:
        yield name, 1 if times is None else times, times is not None


def _carried(module: hlo.Module) -> set[str]:
    """Fused computations that carry on, or end, a collective that another one started."""
    fused = {
        name
        for computation in module.computations.values()
        for x in computation.instructions.values()
        if x.opcode == "fusion"
        for name in hlo.called(x)
    }
    started, others = set(), {}
    for name in fused & module.computations.keys():
        computation = module.computations[name]
        channels = {
            channel[1]
            for x in computation.instructions.values()
            if x.opcode in _KINDS and (channel := _CHANNEL.search(x.attributes))
        }
        if channels and "AsyncCollectiveStart" in _targets(computation):
            started |= channels
        else:
            others[name] = channels
    return {name for name, channels in others.items() if channels & started}


_CHANNEL = re.compile(r"channel_id=(\d+)")


def _targets(computation: hlo.Computation) -> set[str]:
    calls = (x for x in computation.instructions.values() if x.opcode == "custom-call")
    return {name for x in calls for name in re.findall(r'custom_call_target="(\w+)"', x.attributes)}


def _hidden(module: hlo.Module, computation: hlo.Computation) -> set[str]:
    """Names of the instructions that start something and have computation before its end."""
    working = 0  # instructions that compute, so far
    began: dict[str, tuple[str, int]] = {}  # start, update or channel -> (start, working then)
    hidden = set()
    for name, x in computation.instructions.items():
        begins, ends = _ends(module, x)
        if ends is not None and ends in began:
            start, before = began[ends]
            if x.opcode == "async-update":
                began[name] = start, before
            elif working > before:
                hidden.add(start)
        elif begins is not None:
            began[begins] = name, working
        elif x.opcode not in _IDLE and not x.opcode.endswith(("-start", "-done")):
            working += 1
    # Slices wait for what they receive, while their program names what it sends.
    meetings = {name: _HOST.search(x.attributes) for name, x in computation.instructions.items()
                if x.opcode in ("send", "recv")}  # fmt: skip
    met = {found[1] for name, found in meetings.items() if found and name in hidden}
    hidden -= meetings.keys()
    return hidden | {name for name, found in meetings.items() if found and found[1] in met}


def _ends(module: hlo.Module, x: hlo.Instruction) -> tuple[str | None, str | None]:
    """(what this instruction starts, what it ends): a name, or a channel of libtpu's fusions."""
    if x.opcode in _ENDS:
        return None, x.operands[0]
    if x.opcode in _STARTS:
        return x.name, None
    if x.opcode != "fusion":
        return None, None
    for inner in (
        module.computations[name] for name in hlo.called(x) if name in module.computations
    ):
        targets = _targets(inner)
        if not targets & {"AsyncCollectiveStart", "AsyncCollectiveDone"}:
            continue
        channels = (_CHANNEL.search(y.attributes) for y in inner.instructions.values())
        channel = next((f"channel {found[1]}" for found in channels if found), None)
        return (channel, None) if "AsyncCollectiveStart" in targets else (None, channel)
    return None, None


def _collective(computation: hlo.Computation, x: hlo.Instruction, groups: Groups) -> Collective:
    kind = _KINDS[x.opcode]
    operands = [computation.instructions[name].shape for name in x.operands]
    if x.opcode.startswith("ragged-all-to-all"):
        operands = operands[:1]  # then come the output and the offsets
    size = sum(map(hlo.bytes_of, operands))
    if kind == "all-reduce" and _scatters(computation, size):
        kind = "reduce-scatter"
    axes, n = groups.of(x.attributes)
    return Collective(kind, axes, ring_bytes(kind, size, n), n, 1, overlapped=False)


_HOST = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')


def _between(
    computation: hlo.Computation, x: hlo.Instruction, axes: tuple[str, ...], slices: int
) -> Collective | None:
    """An exchange between slices; None: a message to the host."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', x.attributes)
    if transfer is None:
        return None
    named = transfer[1].lower().replace("_", "-")
    kind = named if named in KINDS else "collective-permute"
    size = ring_bytes(kind, hlo.bytes_of(computation.instructions[x.operands[0]].shape), slices)
    return Collective(kind, axes, size, slices, 1, overlapped=False, slices=slices)


def ring_bytes(kind: str, operand: int, n: int) -> int:
    """Bytes that one of ``n`` chips sends in a ring, from the bytes of its operand.

    An all-gather's operand is 1/n of its result. Chan et al. 2007, "Collective communication:
    theory, practice, and experience", section 4: lower bounds, which rings reach.
    """
    if kind == "collective-permute":
        return operand
    shares = {"all-gather": n * (n - 1), "all-reduce": 2 * (n - 1)}.get(kind, n - 1)
    return operand * shares // n


def _scatters(computation: hlo.Computation, operand: int) -> bool:
    """Whether a fused all-reduce keeps a part only."""
    root = computation.instructions.get(computation.root)
    slices = any(x.opcode == "dynamic-slice" for x in computation.instructions.values())
    return root is not None and slices and 0 < hlo.bytes_of(root.shape) < operand
