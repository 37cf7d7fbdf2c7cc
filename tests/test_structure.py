"""The size of files, and that parts declare what they offer instead of being probed."""

import ast
import pathlib
import re
import statistics

ROOT = pathlib.Path(__file__).parent.parent / "mmflax"
PARTS = re.compile("encoder|fusion|backbone|family")


def sizes():
    lines = {path: len(path.read_text().splitlines()) for path in ROOT.rglob("*.py")}
    return {path.relative_to(ROOT).as_posix(): count for path, count in lines.items() if count > 1}


def test_files_stay_readable():
    assert {name: count for name, count in sizes().items() if count > 350} == {}
    assert statistics.median(sizes().values()) <= 110


def probes(path):
    """Whether a part has an attribute: hasattr, getattr with a default, inspect.signature."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        asks = name == "hasattr" or (name == "getattr" and len(node.args) == 3)
        if asks or name.endswith("inspect.signature"):
            if PARTS.search(ast.unparse(node.args[0])):
                yield ast.unparse(node)


def test_encoders_fusions_and_families_are_not_probed():
    """What a part offers stands in models/contracts.py, with its default in a base class."""
    found = {path.relative_to(ROOT): list(probes(path)) for path in ROOT.rglob("*.py")}
    assert {path: calls for path, calls in found.items() if calls} == {}
