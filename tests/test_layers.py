"""Imports run one way: the picture in docs/architecture.md, held by reading the source."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent / "mmflax"

# Which of our rooms a file may import, by the longest prefix of its own name.
ALLOWED = {
    "mmflax": {"run"},
    "mmflax.errors": set(),
    "mmflax.version": set(),
    "mmflax.registry": set(),
    "mmflax.paths": set(),
    "mmflax.files": set(),
    "mmflax.numerics": set(),
    "mmflax.batch_keys": set(),
    "mmflax.models": {"models"},
    "mmflax.losses": {"losses"},
    "mmflax.metrics": {"metrics"},
    "mmflax.tasks": {"tasks", "models", "losses", "metrics"},
    "mmflax.data": {"data", "metrics"},
    "mmflax.distributed": {"distributed"},
    "mmflax.checkpoints": {"checkpoints"},
    "mmflax.config": {"config"},
    "mmflax.training": {"training", "distributed", "checkpoints"},
    "mmflax.training.step": {"training"},
    "mmflax.training.optim": {"training"},
    "mmflax.training.observe": {"training", "distributed"},
    "mmflax.evaluation": {"evaluation", "tasks", "metrics", "data", "distributed"},
    "mmflax.inference": {"inference", "evaluation", "models", "tasks", "metrics", "data"},
    "mmflax.pretrained": {"pretrained", "models", "data", "checkpoints", "distributed"},
    "mmflax.run": {
        "run", "config", "inference", "evaluation", "pretrained", "models", "tasks", "metrics",
        "data", "training", "distributed", "checkpoints",
    },
    "mmflax.cli": {"run", "inference", "evaluation", "pretrained", "config", "distributed"},
}  # fmt: skip
EVERYBODY = {
    "errors",
    "version",
    "registry",
    "paths",
    "files",
    "numerics",
    "batch_keys",
    "platform",
}


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from mmflax.data import pipeline` names a module; `from mmflax.errors import E` not.
            found |= {
                f"{node.module}.{alias.name}" if is_module(f"{node.module}.{alias.name}")
                else node.module
                for alias in node.names
            }  # fmt: skip
    return found


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def allowed(module: str) -> set[str]:
    prefix = max((p for p in ALLOWED if module == p or module.startswith(p + ".")), key=len)
    return ALLOWED[prefix] | EVERYBODY


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("mmflax", *path.relative_to(ROOT).with_suffix("").parts))
        yield name.removesuffix(".__init__"), path


def table() -> str:
    """The rules as rows of docs/architecture.md."""
    rows = []
    for name, rooms in ALLOWED.items():
        room = name.removeprefix("mmflax.")
        if room not in EVERYBODY:
            others = sorted(rooms - {room.split(".")[0]})
            rows.append(f"| `{room}` | {', '.join(others) or 'nothing'} |")
    shared = ", ".join(f"`{room}`" for room in sorted(EVERYBODY))
    return "\n".join(rows) + f"\n\nEverybody may import {shared}."


def test_the_documentation_has_these_rules():
    assert table() in (ROOT.parent / "docs" / "architecture.md").read_text(), table()


def test_linen_stays_behind_init_and_apply():
    """So that a module of another library can take a model's place."""
    inside = ("mmflax.models", "mmflax.tasks", "mmflax.pretrained", "mmflax.distributed.mesh")
    wrong = [
        name
        for name, path in modules()
        if any(target.startswith("flax.linen") for target in imports(path))
        and not name.startswith(inside)
    ]
    assert wrong == []


def test_imports_run_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if target.startswith("mmflax.") and target.split(".")[1] not in allowed(name)
    ]
    assert wrong == []


def test_no_two_files_import_each_other():
    """No circle of any length among files, wherever in them the import stands."""
    graph = {
        name: {target for target in imports(path) if target.startswith("mmflax")}
        for name, path in modules()
    }
    circles, done = [], set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            circles.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in graph.get(name, ()):
                walk(target, (*trail, name))
            done.add(name)

    for name in graph:
        walk(name, ())
    assert circles == []


def test_no_heavy_library_is_imported():
    heavy = {"tensorflow", "torch", "transformers"}
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        # `mmflax convert --check` runs the original; nothing else needs the parity extra.
        if target.split(".")[0] in heavy and name != "mmflax.run.original"
    ]
    assert wrong == []
