"""Which mesh axes the groups of a collective go along, from the text of a program."""

from __future__ import annotations

import math
import re
from collections import defaultdict

import numpy as np
from jax.sharding import AbstractMesh, Mesh


class Groups:
    """Which mesh axes the groups of a collective go along.

    A device's number in the text is its position in the program's device assignment, which jax
    makes ``mesh.devices.flat``: a position in the mesh, whatever the devices' own ids are. A
    program for one of several slices numbers the chips of its own slice, from 0.
    """

    def __init__(self, mesh: Mesh | AbstractMesh):
        self._names = tuple(map(str, mesh.axis_names))
        self._shape = tuple(mesh.axis_sizes)
        self._known: dict[str, tuple[tuple[str, ...], int]] = {}

    def of(self, attributes: str) -> tuple[tuple[str, ...], int]:
        """(axes, devices of a group), from an instruction's attributes."""
        found = _GROUPS.search(attributes)
        text = found[0] if found else ""
        # Groups without a channel are of replicas, and an SPMD program of jax has one replica.
        if "channel_id=" not in attributes and math.prod(self._shape) > 1:
            text += " without channel"
        if text not in self._known:
            self._known[text] = self._read(text)
        return self._known[text]

    def between_slices(self, partitions: int) -> tuple[tuple[str, ...], int]:
        """(axes, slices) of a program for one of several slices of ``partitions`` chips.

        The slices follow each other in the mesh's order, as ``mesh.make_mesh`` places them.
        """
        pairs = np.array([[0, k] for k in range(0, math.prod(self._shape), partitions)])
        return self._axes(pairs), len(pairs)

    def _read(self, text: str) -> tuple[tuple[str, ...], int]:
        total = math.prod(self._shape)
        if text.startswith("source_target_pairs"):
            pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", text), int).reshape(-1, 2)
            pairs = pairs[pairs[:, 0] != pairs[:, 1]]
            axes = self._axes(pairs)
            sizes = dict(zip(self._names, self._shape, strict=True))
            return axes, math.prod(sizes[axis] for axis in axes) if axes else min(2, len(pairs) + 1)
        groups = replica_groups(text, total)
        if groups is None:
            return (), total
        longest = max(groups, key=len)
        varied = [self._axes(np.array([[group[0], x] for x in group])) for group in groups]
        axes = tuple(name for name in self._names if any(name in one for one in varied))
        return axes, len(longest)

    def _axes(self, pairs: np.ndarray) -> tuple[str, ...]:
        """Those along which the two positions of any pair differ."""
        if pairs.size == 0 or pairs.max() >= math.prod(self._shape):
            return ()
        places = np.stack(np.unravel_index(pairs, self._shape))  # [axes, pairs, 2]
        differ = (places[..., 0] != places[..., 1]).any(axis=1)
        return tuple(name for name, yes in zip(self._names, differ, strict=True) if yes)


_GROUPS = re.compile(
    r"source_target_pairs=\{.*?\}\}"
    r"|replica_groups=(?:mesh\[.*?\].*?\{[^}]*\}|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?"
    r"|\{\{.*?\}\}|\{\})"
)


def replica_groups(text: str, total: int) -> list[list[int]] | None:
    """Groups of positions, from the three forms that XLA prints; None: another form.

    ``{{0,1},{2,3}}`` lists them; ``[2,2]<=[2,2]T(1,0)`` is a reshaped and transposed iota; and
    ``mesh['a'=2,'b'=2] {'a'}`` names axes of a mesh of its own (``'a':(1)2`` is the part of axis a
    with 1 before it and of size 2), perhaps with
    ``device_ids=(…)`` in its order, listed or as an iota.
    """
    body = text.partition("=")[2]
    if body.startswith("{"):
        listed = re.findall(r"\{([\d,\s]+)\}", body)
        return [[int(x) for x in group.split(",")] for group in listed] or [list(range(total))]
    iota = re.match(r"\[([\d,]+)\]<=(.*)", body)
    if iota:
        return _lists(_iota(iota[2]).reshape(_integers(iota[1])))
    mesh = re.match(r"mesh\[(.*?)\](.*)\{(.*)\}$", body)
    return _mesh_groups(*mesh.groups()) if mesh else None


def _mesh_groups(sizes: str, devices: str, axes: str) -> list[list[int]] | None:
    mesh = {name: int(size) for name, size in re.findall(r"([^=,]+)=(\d+)", sizes)}
    total = math.prod(mesh.values())
    listed = re.search(r"device_ids=\((.*)\)", devices)
    ids = np.arange(total) if listed is None else _iota(listed[1])
    if ids.size != total:
        return None
    # Each axis is split into (before, part, after); the parts that are named form the group.
    parts: dict[str, list[int]] = {name: [size] for name, size in mesh.items()}
    named = [re.fullmatch(r"(.*?)(?::\((\d+)\)(\d+))?", axis.strip()) for axis in axes.split(",")]
    chosen: dict[str, set[int]] = defaultdict(set)
    for match in named:
        if match is None or match[1] not in mesh:
            return None
        size = mesh[match[1]]
        before, part = (int(match[2]), int(match[3])) if match[2] else (1, size)
        if len([other for other in named if other and other[1] == match[1]]) > 1:
            return None
        parts[match[1]] = [before, part, size // before // part]
        chosen[match[1]].add(1)
    flat = [(name, i, size) for name, split in parts.items() for i, size in enumerate(split)]
    inside = [k for k, (name, i, _) in enumerate(flat) if i in chosen[name]]
    outside = [k for k in range(len(flat)) if k not in inside]
    grid = ids.reshape([size for _, _, size in flat]).transpose(outside + inside)
    return _lists(grid.reshape(-1, math.prod(flat[k][2] for k in inside)))


def _iota(text: str) -> np.ndarray:
    """``[2,3]T(1,0)``, an iota of that shape transposed, or a list of numbers; flat."""
    found = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if not found:
        return np.array(_integers(text))
    shape = _integers(found[1])
    grid = np.arange(math.prod(shape)).reshape(shape)
    return (grid.transpose(_integers(found[2])) if found[2] else grid).reshape(-1)


def _integers(text: str) -> list[int]:
    return [int(x) for x in re.findall(r"\d+", text)]


def _lists(groups: np.ndarray) -> list[list[int]]:
    return [[int(x) for x in group] for group in groups]
