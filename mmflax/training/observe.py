"""What a run shows: progress, metrics.jsonl, TensorBoard, run.json, the parameter table.

Observers exist in process 0 only. Values are plain floats; names are ``loss``, ``val/accuracy`` …
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import rich.console
import rich.progress
from jax.sharding import Mesh

# Dense bf16 FLOP/s of one device, by a prefix of device_kind (the first that fits). Sources: Google
# Cloud TPU docs, "TPU v4", "v5e", "v5p", "v6e"; NVIDIA datasheets A100 (2020), H100 (2022), H200
# (2023), without sparsity.
PEAK_FLOPS: tuple[tuple[str, float], ...] = (
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6", 918e12),
    ("NVIDIA A100", 312e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H100", 989e12),
    ("NVIDIA H200", 989e12),
)


class Observer(Protocol):
    """Told of everything by the loop, in order."""

    def start(self, step: int, total: int) -> None: ...

    def record(self, step: int, values: dict[str, float]) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def observers(workdir: str | os.PathLike, *, terminal: bool | None = None) -> list[Observer]:
    """Progress, metrics.jsonl and TensorBoard in the main process; none in the others."""
    if jax.process_index() != 0:
        return []
    return [Progress(terminal=terminal), MetricsFile(workdir), TensorBoard(workdir)]


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, or None where it is not known (CPUs)."""
    return next((peak for kind, peak in PEAK_FLOPS if device_kind.startswith(kind)), None)


def utilisation(flops: float, seconds: float, devices: Sequence[jax.Device]) -> float | None:
    """Model FLOP utilisation (Chowdhery et al. 2022, appendix B): 1.0 = the peak of all devices."""
    peak = peak_flops(devices[0].device_kind)
    return None if peak is None or seconds <= 0 else flops / (seconds * peak * len(devices))


def count_flops(function: Callable, *args: Any) -> float:
    """FLOPs of one call, from its lowering; shapes suffice as arguments.

    A loop's body counts once, so pass a function without scanned layers or accumulation.
    """
    costs = jax.jit(function).lower(*args).cost_analysis() or {}
    return float(costs.get("flops", 0.0))


class Progress:
    """A live bar in a terminal, otherwise one plain line a record, on stderr."""

    def __init__(self, *, terminal: bool | None = None, stream: Any = None):
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty() if terminal is None else terminal
        self._bar: rich.progress.Progress | None = None
        self._total = 0

    def start(self, step: int, total: int) -> None:
        self._total = total
        if self._terminal and self._bar is None:
            self._bar = rich.progress.Progress(
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                rich.progress.TimeElapsedColumn(),
                console=rich.console.Console(file=self._stream, force_terminal=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("train", total=total, completed=step, text="")

    def record(self, step: int, values: dict[str, float]) -> None:
        text = describe(values)
        if self._bar is None:
            print(f"step {step}/{self._total}  {text}", file=self._stream, flush=True)
        elif "steps_per_second" in values:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.message(f"step {step}  {text}")

    def message(self, text: str) -> None:
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(values: dict[str, float]) -> str:
    """``loss 1.2345  12.3 steps/s  394 examples/s  MFU 41.0%  ETA 0:01:23``."""
    parts = []
    for name, value in values.items():
        if name == "steps_per_second":
            parts.append(f"{value:.3g} steps/s")
        elif name == "examples_per_second":
            parts.append(f"{value:.4g} examples/s")
        elif name == "mfu":
            parts.append(f"MFU {100 * value:.1f}%")
        elif name == "eta_seconds":
            parts.append(f"ETA {clock(value)}")
        elif name == "skipped" and value:
            parts.append(f"{value:.0f} skipped")
        elif name == "loss" or "/" in name or name == "accuracy":
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class MetricsFile:
    """``metrics.jsonl``: one JSON object a record; steps that a resumed run repeats are cut."""

    def __init__(self, workdir: str | os.PathLike):
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._file: Any = None

    def start(self, step: int, total: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _until(line, step)]
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text("".join(line + "\n" for line in kept))
            temporary.replace(self._path)
        self._file = self._path.open("a")

    def record(self, step: int, values: dict[str, float]) -> None:
        # NaN is not JSON.
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _until(line: str, step: int) -> bool:
    """Whether a line is whole (the last may be cut by a kill) and not after the step."""
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoard:
    """Scalars under ``tensorboard/``; purged beyond the step that a run resumes from."""

    def __init__(self, workdir: str | os.PathLike):
        self._path = pathlib.Path(workdir) / "tensorboard"
        self._writer: Any = None

    def start(self, step: int, total: int) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(self._path), purge_step=step + 1)

    def record(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def message(self, text: str) -> None:
        pass

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def write_run(workdir: str | os.PathLike, mesh: Mesh, **more: Any) -> dict[str, Any]:
    """Write ``run.json``: versions, command, git state, mesh; earlier starts stay under it.

    Returns:
      What was written. Processes other than the main one write nothing.
    """
    devices = mesh.devices.flatten()
    run: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git_state(),
        "mesh": dict(mesh.shape),
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "processes": jax.process_count(),
        **more,
    }
    if jax.process_index() != 0:
        return run
    path = pathlib.Path(workdir) / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        former = json.loads(path.read_text())
        run["earlier"] = [*former.pop("earlier", []), former]
    except (OSError, ValueError):
        run["earlier"] = []
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(run, indent=2, default=str) + "\n")
    temporary.replace(path)
    return run


def git_state(directory: str | os.PathLike | None = None) -> dict[str, Any] | None:
    """Commit and whether files differ from it, of the code that runs; None outside git."""
    where = str(directory or pathlib.Path(__file__).parent)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", where, *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {}
    for name in ("mmflax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def parameter_table(params: Any, *, depth: int | None = None) -> str:
    """Path, shape, layout and count of every parameter, with the total.

    Args:
      params: tree of arrays or shapes; shardings are shown where present.
      depth: join what agrees in so many leading path segments into one row.
    """
    rows: dict[str, list] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        spec = getattr(getattr(leaf, "sharding", None), "spec", None)
        axes = "" if spec is None else ", ".join("-" if a is None else str(a) for a in spec)
        if depth is None:
            rows[name] = [str(list(leaf.shape)), str(leaf.dtype), f"({axes})", leaf.size]
        else:
            row = rows.setdefault("/".join(name.split("/")[:depth]), ["", "", "", 0])
            row[3] += leaf.size
    rows["total"] = ["", "", "", sum(row[3] for row in rows.values())]
    cells = [[name, *row[:3], f"{row[3]:,}"] for name, row in rows.items()]
    widths = [max(len(row[i]) for row in cells) for i in range(5)]
    lines = []
    for row in cells:
        left = "  ".join(cell.ljust(width) for cell, width in zip(row[:4], widths[:4], strict=True))
        lines.append(f"{left}  {row[4].rjust(widths[4])}")
    return "\n".join(lines) + "\n"
