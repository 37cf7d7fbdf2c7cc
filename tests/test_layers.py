"""Imports run one way: the picture in docs/architecture.md, held by reading the source."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent / "mmflax"

# Which of our modules a file may import, by the longest prefix of its own name.
ALLOWED = {
    "mmflax": {"errors", "version", "experiment", "pretrained"},
    "mmflax.errors": set(),
    "mmflax.version": set(),
    "mmflax.plugins": set(),
    "mmflax.config": {"plugins"},
    "mmflax.models": {"models"},
    "mmflax.losses": {"losses"},
    "mmflax.metrics": {"metrics"},
    "mmflax.tasks": {"tasks", "models", "losses", "metrics"},
    "mmflax.data": {"data", "metrics"},
    "mmflax.distributed": {"distributed"},
    "mmflax.checkpoints": {"checkpoints"},
    "mmflax.training.step": {"training"},
    "mmflax.training.optim": {"training"},
    "mmflax.training": {"training", "distributed", "checkpoints"},
    "mmflax.inference": {"inference", "models", "tasks", "metrics", "data", "checkpoints"},
    "mmflax.pretrained": {"plugins", "checkpoints", "data", "distributed", "pretrained_run"},
    # The two ask each other when they are called: a run opens by the same door.
    "mmflax.pretrained_run": {"data", "experiment", "pretrained"},
    "mmflax.warm_start": {"plugins", "pretrained", "pretrained_run", "checkpoints", "models"},
    "mmflax.assembly": {
        "plugins", "models", "tasks", "data", "training", "distributed", "checkpoints",
    },
    "mmflax.scoring": {
        "assembly", "tasks", "data", "training", "distributed", "inference", "metrics",
    },
    "mmflax.experiment": {
        "assembly", "scoring", "config", "tasks", "data", "training", "distributed", "inference",
        "warm_start", "checkpoints",
    },
    "mmflax.matched": {"plugins", "assembly", "data"},
    "mmflax.ablate": {"experiment", "config", "inference", "matched"},
    "mmflax.conversion": {"plugins", "pretrained", "pretrained_run", "warm_start"},
    "mmflax.cli": {
        "experiment", "ablate", "inference", "distributed", "config", "conversion", "pretrained",
    },
}  # fmt: skip
EVERYBODY = {"errors", "version"}


def imports(path: pathlib.Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"mmflax.{alias.name}" for alias in node.names}
                if node.module == "mmflax"
                else {node.module}
            )
    return found


def allowed(module: str) -> set[str]:
    prefix = max((p for p in ALLOWED if module == p or module.startswith(p + ".")), key=len)
    return ALLOWED[prefix] | EVERYBODY


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(("mmflax", *path.relative_to(ROOT).with_suffix("").parts))
        yield name.removesuffix(".__init__"), path


def test_imports_run_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        if target.startswith("mmflax.")
        and target.split(".")[1] not in allowed(name)
        and not target.split(".")[1].startswith("_")
    ]
    assert wrong == []


def test_no_heavy_library_is_imported():
    heavy = {"tensorflow", "torch", "transformers"}
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(path)
        # `mmflax convert --check` runs the original; nothing else needs the parity extra.
        if target.split(".")[0] in heavy and name != "mmflax.conversion"
    ]
    assert wrong == []
