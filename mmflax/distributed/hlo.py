"""Reading the HLO text of a compiled program (``compiled.as_text()``), in one pass over its lines.

A module is computations, each a list of instructions ``%name = shape opcode(%operands),
attributes``; a computation stands before those that call it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"(?:^|\s)([a-z][\w\-]*)\(")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\]")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0, "tuple": 0}


class Instruction(NamedTuple):
    """``attributes`` is the text behind the operands, ``literal`` the one inside a constant."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str


@dataclasses.dataclass
class Computation:
    """Instructions by name, in the order of execution where the module is scheduled."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""


class Module(NamedTuple):
    """Computations by name, called before calling."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Module:
    """The computations of an HLO module's text."""
    computations: dict[str, Computation] = {}
    entry = ""
    current: Computation | None = None
    for line in text.splitlines():
        if line[:1] in ("%", "E") and (header := _HEADER.match(line)):
            current = computations[header[2]] = Computation(header[2], {})
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and (begin := _LINE.match(line)):
            current.instructions[begin[2]] = _instruction(begin[2], line[begin.end() :])
            if begin[1]:
                current.root = begin[2]
    return Module(computations, entry)


def _instruction(name: str, text: str) -> Instruction:
    opcode = _OPCODE.search(text)
    if opcode is None:
        return Instruction(name, text, "", (), "", "")
    depth, end = 1, len(text)
    for mark in re.compile(r"[()]").finditer(text, opcode.end()):
        depth += 1 if mark[0] == "(" else -1
        if depth == 0:
            end = mark.start()
            break
    inside = text[opcode.end() : end]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    literal = inside if opcode[1] in ("constant", "parameter") else ""
    return Instruction(name, text[: opcode.start()], opcode[1], operands, text[end + 1 :], literal)


def bytes_of(shape: str) -> int:
    """Of the arrays of a shape such as ``(bf16[8,128]{1,0:T(8,128)}, s4[3])``, without padding."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = _BITS.get(kind)
        if bits is None:  # f32, s4, f8e4m3fn …
            bits = int(re.findall(r"\d+", kind)[0])
        count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
        total += (count * bits + 7) // 8
    return total


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction calls, without a loop's condition."""
    names: list[str] = []
    for one, several in _CALLED.findall(instruction.attributes):
        names += [one] if one else [part.strip().lstrip("%") for part in several.split(",")]
    return names


class Element(NamedTuple):
    """What a loop's state had at index ``element`` when the iteration began, plus ``offset``."""

    element: int
    offset: int = 0


# None: anything else than an integer or a counter.
Value = int | Element | None
# (which parameter, index in it where it is a tuple) -> its value.
Arguments = Callable[[int, tuple[int, ...]], Value]


def trip_count(module: Module, loop: Instruction, caller: Computation) -> int | None:
    """How often a ``while`` runs its body, or None where the text does not say.

    From ``known_trip_count``, else from a condition that compares a counter of the state with a
    constant, the counter's first value and what the body adds to it.
    """
    known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    names = dict(re.findall(r"\b(condition|body)=%?([\w.\-]+)", loop.attributes))
    condition = module.computations.get(names.get("condition", ""))
    body = module.computations.get(names.get("body", ""))
    if condition is None or body is None:
        return None
    left, right, direction = _comparison(module, condition, condition.root, _state)
    if isinstance(left, int):
        left, right = right, left
        direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
    if not isinstance(left, Element) or not isinstance(right, int):
        return None
    after = _value(module, body, body.root, _state, (left.element,))
    start = _value(module, caller, loop.operands[0], _unknown, (left.element,))
    if (
        not isinstance(after, Element)
        or after.element != left.element
        or not isinstance(start, int)
    ):
        return None
    return _iterations(start + left.offset, after.offset, right, direction)


def _state(_: int, path: tuple[int, ...]) -> Value:
    return Element(path[0]) if len(path) == 1 else None


def _unknown(_: int, path: tuple[int, ...]) -> Value:
    return None


def _comparison(
    module: Module, computation: Computation, name: str, arguments: Arguments
) -> tuple[Value, Value, str]:
    """Both sides of a comparison and its direction, which may be inside a fusion."""
    found = computation.instructions.get(name)
    if found is not None and found.opcode in ("fusion", "call"):
        inner = module.computations[called(found)[0]]
        bound = functools.partial(_operand, module, computation, found, arguments)
        return _comparison(module, inner, inner.root, bound)
    direction = found and re.search(r"direction=(\w+)", found.attributes)
    if found is None or not direction:
        return None, None, ""
    left, right = (_value(module, computation, side, arguments) for side in found.operands[:2])
    return left, right, direction[1]


def _iterations(start: int, step: int, limit: int, direction: str) -> int | None:
    """None: it would not end before the counter overflows."""
    if direction in ("LE", "GE"):  # with integers, the same as below and above the next one
        limit, direction = (limit + 1, "LT") if direction == "LE" else (limit - 1, "GT")
    distance = limit - start
    if direction == "NE":
        if distance == 0:
            return 0
        return distance // step if step and distance % step == 0 < distance // step else None
    if direction == "GT":
        distance, step = -distance, -step
    if distance <= 0:
        return 0
    return -(-distance // step) if step > 0 else None


def _operand(
    module: Module,
    computation: Computation,
    of: Instruction,
    arguments: Arguments,
    index: int,
    path: tuple[int, ...],
    depth: int = 0,
) -> Value:
    return _value(module, computation, of.operands[index], arguments, path, depth)


def _value(
    module: Module,
    computation: Computation,
    name: str,
    arguments: Arguments,
    path: tuple[int, ...] = (),
    depth: int = 0,
) -> Value:
    """Of an instruction, or of the element at ``path`` where its shape is a tuple."""
    found = computation.instructions.get(name)
    if found is None or depth > 24:
        return None
    operand = functools.partial(_operand, module, computation, found, arguments, depth=depth + 1)
    match found.opcode:
        case "parameter":
            return arguments(int(found.literal), path)
        case "constant":
            return int(found.literal) if re.fullmatch(r"-?\d+", found.literal) else None
        case "copy" | "copy-start" | "copy-done" | "bitcast" | "convert" | "opt-barrier":
            return operand(0, path)
        case "get-tuple-element":
            index = re.search(r"index=(\d+)", found.attributes)
            return operand(0, (int(index[1]), *path)) if index else None
        case "tuple":
            return operand(path[0], path[1:]) if path else None
        case "fusion" | "call":
            inner = module.computations[called(found)[0]]
            return _value(module, inner, inner.root, operand, path, depth + 1)
        case "add" | "subtract":
            sign = 1 if found.opcode == "add" else -1
            right = operand(1, ())
            return None if right is None else _sum(operand(0, ()), right, sign)
    return None


def _sum(left: Value, right: Value, sign: int) -> Value:
    if isinstance(left, int) and sign == 1:
        left, right = right, left
    if not isinstance(right, int) or left is None:
        return None
    if isinstance(left, Element):
        return Element(left.element, left.offset + sign * right)
    return left + sign * right
