"""The engine that reads a table of names in both directions: their tensors <-> our parameters.

A table is data. A `Rule` is one row: their name, our path, and how the layout differs. `{i}`, or
any other name in braces, stands for a number and is the same on both sides:

    Rule("encoder.layer.{i}.output.dense.weight", "encoder/layers_{i}/mlp/fc2/kernel", LINEAR)

Every tensor of a file and every parameter of a model has to be accounted for; what is not is
listed, all of it at once, and is an error unless it is named as expected. Only numpy and
names here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mmflax.errors import MmflaxError

Shape = tuple[int, ...]
# Counters that torch's AveragedModel keeps beside the weights, whatever the model.
_COUNTERS = r"^n_averaged$"


class Op(NamedTuple):
    """How the layout of a tensor differs; only elements are moved.

    `read(theirs, shape of ours) -> ours` and `write(ours) -> theirs` undo each other exactly;
    `shape(shape of ours) -> shape of theirs` is what a file must have.
    """

    name: str
    read: Callable[[np.ndarray, Shape], np.ndarray]
    write: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


def _size(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64))


COPY = Op("copy", lambda x, _: x, lambda x: x, lambda s: s)
# PyTorch's Linear is [out, in]; our kernels are [in, *out]: out may be heads and their size.
LINEAR = Op(
    "linear",
    lambda x, shape: x.T.reshape(shape),
    lambda x: x.reshape(x.shape[0], -1).T,
    lambda s: (_size(s[1:]), s[0]),
)
# … and for the projection that leaves attention [*in, out]: in is heads and their size.
LINEAR_OUT = Op(
    "linear_out",
    lambda x, shape: x.T.reshape(shape),
    lambda x: x.reshape(-1, x.shape[-1]).T,
    lambda s: (s[-1], _size(s[:-1])),
)
# A bias [heads * size] of ours [heads, size].
FLAT = Op("flat", lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1), lambda s: (_size(s),))
# PyTorch's Conv2d [out, in, height, width] and ours [height, width, in, out].
CONV = Op(
    "conv",
    lambda x, _: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
    lambda s: (s[3], s[2], s[0], s[1]),
)
# Theirs has a leading axis of 1 that ours has not, or is a vector of one number.
FIRST = Op("first", lambda x, _: x[0], lambda x: x[None], lambda s: (1, *s))


class Rule(NamedTuple):
    """Their tensor, our path `a/b/c`, and the op between.

    Several paths are parts of one tensor along its first axis, as `in_proj_weight` holds q, k, v.
    """

    theirs: str
    ours: str | tuple[str, ...]
    op: Op = COPY

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def shape(self, shapes: Sequence[Shape]) -> Shape:
        """The shape of theirs for these of ours."""
        first, *rest = (self.op.shape(shape) for shape in shapes)
        return (first[0] + sum(part[0] for part in rest), *first[1:]) if rest else first

    def read(self, theirs: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
        """Ours, in these shapes."""
        if len(shapes) == 1:
            return [self.op.read(theirs, shapes[0])]
        ends = np.cumsum([self.op.shape(shape)[0] for shape in shapes])
        parts = np.split(theirs, ends[:-1])
        return [self.op.read(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def write(self, ours: Sequence[np.ndarray]) -> np.ndarray:
        """Theirs, contiguous."""
        parts = [self.op.write(array) for array in ours]
        theirs = parts[0] if len(parts) == 1 else np.concatenate(parts)
        # numpy makes a number into a vector here.
        return np.ascontiguousarray(theirs).reshape(theirs.shape)


class Table(NamedTuple):
    """A family's rows.

    Attributes:
      rules: their names and ours.
      tied: (name, the name it repeats) of theirs: a tensor that some files store twice. It is
        compared when it is there, and not written.
      unused: regexes of their tensors that hold nothing to learn, such as `position_ids`.
    """

    rules: tuple[Rule, ...]
    tied: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rows for a part that lies at a prefix: `theirs` ends in "." and `ours` in "/"."""
    return tuple(
        Rule(theirs + rule.theirs, tuple(ours + path for path in rule.paths), rule.op)
        for rule in rules
    )


def bind(
    table: Table,
    names: Iterable[str],
    ours: Mapping[str, Shape],
    *,
    shapes: Mapping[str, Shape] | None = None,
    may_lack: Sequence[str] = (),
    may_ignore: Sequence[str] = (),
    source: str = "The checkpoint",
) -> list[Rule]:
    """Which tensor of theirs goes to which parameters: rules with their numbers filled in.

    Args:
      table: the family's rows.
      names: of all their tensors.
      ours: path -> shape of all our parameters.
      shapes: of their tensors, to compare with what each parameter needs.
      may_lack: regexes of our paths that a file need not have, such as a new head.
      may_ignore: regexes of their names that may be left, such as a pretraining head.
      source: the checkpoint, for messages.

    Raises:
      MmflaxError: lists every unknown, unused, missing and misshapen tensor.
    """
    names = set(names)
    bound, missing, misshapen = [], [], []
    done: set[str] = set()
    for path in sorted(ours):
        if path in done:
            continue
        candidates = _leading_to(table.rules, path)
        if not candidates:
            raise MmflaxError(f"{source}: no rule of its table leads to our parameter {path}.")
        one = _present(candidates, names, table)
        done.update(one.paths)
        if one.theirs not in names:
            if not any(re.search(pattern, path) for pattern in may_lack):
                missing.append(f"{one.theirs} (for {path})")
            continue
        lost = [p for p in one.paths if p not in ours]
        if lost:
            raise MmflaxError(
                f"{source}: {one.theirs} also holds {lost[0]}, which the model lacks."
            )
        if shapes is not None:
            needed = one.shape([ours[p] for p in one.paths])
            if tuple(shapes[one.theirs]) != needed:
                misshapen.append(
                    f"{one.theirs} is {list(shapes[one.theirs])}, {path} needs {list(needed)}"
                )
        bound.append(one)
    taken = {one.theirs for one in bound}
    expected = [*table.unused, *may_ignore, _COUNTERS]
    left = [
        name
        for name in sorted(names - taken)
        if not any(re.search(pattern, name) for pattern in expected)
        and _tied_to(table, name) is None
    ]
    known = [name for name in left if _theirs_known(table.rules, name)]
    unknown = [name for name in left if name not in set(known)]
    problems = [
        f"{label}: {some_of(items)}"
        for label, items in (
            ("missing", missing),
            ("misshapen", misshapen),
            ("unknown (no rule names them)", unknown),
            ("unused (the model has no place for them)", known),
        )
        if items
    ]
    if problems:
        raise MmflaxError(f"{source} does not fit the model. " + " | ".join(problems) + ".")
    return bound


def write(table: Table, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Their tensors of our parameters (path -> array), contiguous; the inverse of reading."""
    return {rule.theirs: tensor for rule, tensor in written(table, params)}


def written(table: Table, params: Mapping[str, np.ndarray]) -> list[tuple[Rule, np.ndarray]]:
    """The same, each with its rule, whose numbers are filled in."""
    tensors = []
    done: set[str] = set()
    for path in sorted(params):
        if path in done:
            continue
        candidates = _leading_to(table.rules, path)
        if not candidates:
            raise MmflaxError(f"no rule of the table leads from our parameter {path}.")
        one = candidates[0]
        done.update(one.paths)
        tensors.append((one, one.write([np.asarray(params[p]) for p in one.paths])))
    return tensors


def check_tied(table: Table, tensors: Mapping[str, Any], source: str = "The checkpoint") -> None:
    """Raises if a tensor that a model ties to another differs from it in the file."""
    for name in tensors:
        other = _tied_to(table, name)
        if (
            other is not None
            and other in tensors
            and not np.array_equal(tensors[name], tensors[other])
        ):
            raise MmflaxError(
                f"{source}: {name} differs from {other}, to which this family ties it; if the "
                "model was trained with the two apart, its config.json needs "
                '"tie_word_embeddings": false, else the file belongs to another architecture.'
            )


def count_known(table: Table, names: Iterable[str]) -> int:
    """How many of these names of theirs the table has."""
    return sum(
        _theirs_known(table.rules, name)
        or _tied_to(table, name) is not None
        or any(re.search(pattern, name) for pattern in table.unused)
        for name in names
    )


def _leading_to(rules: Sequence[Rule], path: str) -> list[Rule]:
    """Every rule that leads to this path, filled in, in the table's order."""
    filled = []
    for rule in rules:
        for pattern in rule.paths:
            if match := _compiled(pattern).fullmatch(path):
                numbers = match.groupdict()
                paths = tuple(_fill(p, numbers) for p in rule.paths)
                filled.append(Rule(_fill(rule.theirs, numbers), paths, rule.op))
    return filled


def _present(candidates: Sequence[Rule], names: set[str], table: Table) -> Rule:
    """The first spelling that the file has, or the first: a table may list several."""
    for one in candidates:
        if one.theirs in names:
            return one
    # A tied tensor may be stored under its other name only.
    for one in candidates:
        for name in names:
            if _tied_to(table, name) == one.theirs:
                return one._replace(theirs=name)
    return candidates[0]


def _tied_to(table: Table, name: str) -> str | None:
    for pattern, other in table.tied:
        if match := _compiled(pattern).fullmatch(name):
            return _fill(other, match.groupdict())
    return None


def _theirs_known(rules: Sequence[Rule], name: str) -> bool:
    return any(_compiled(rule.theirs).fullmatch(name) for rule in rules)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """`a.{i}.b` as a regex; a name that comes twice must be the same number."""
    seen: set[str] = set()
    out = []
    for piece in re.split(r"(\{\w+\})", pattern):
        if re.fullmatch(r"\{\w+\}", piece):
            name = piece[1:-1]
            out.append(f"(?P={name})" if name in seen else rf"(?P<{name}>\d+)")
            seen.add(name)
        else:
            out.append(re.escape(piece))
    return re.compile("".join(out))


def _fill(pattern: str, numbers: Mapping[str, str]) -> str:
    for name, value in numbers.items():
        pattern = pattern.replace("{" + name + "}", value)
    return pattern


def some_of(items: Sequence[str], most: int = 20) -> str:
    """The first of them, and how many more there are."""
    shown = "; ".join(items[:most])
    return shown if len(items) <= most else f"{shown}; and {len(items) - most} more"
