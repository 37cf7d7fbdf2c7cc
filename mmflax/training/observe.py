"""Logging of a run: progress, metrics.jsonl, TensorBoard, run.json, FLOPs, the parameter table.

Observers exist in process 0 only. Values are floats; names are ``loss``, ``val/accuracy`` …
"""

import contextlib
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
from typing import Any

import jax
import rich.console
import rich.progress
from jax.sharding import Mesh

from mmflax import paths
from mmflax.distributed.chips import chip_of
from mmflax.files import write_file

StrPath = str | os.PathLike[str]
Headline = Callable[[dict[str, float]], str | None]


class Observer:
    """Receives the loop's events in order; a subclass overrides those that it handles."""

    def start(self, step: int, total: int) -> None:
        """Training begins at ``step`` of ``total``."""

    def record(self, step: int, values: dict[str, float]) -> None:
        """Metrics of a step, or of an evaluation after it."""

    def message(self, text: str) -> None:
        """A sentence for the user."""

    def close(self) -> None:
        """Training ended, with or without an error."""


def observers(
    workdir: StrPath, *, terminal: bool | None = None, headline: Headline | None = None
) -> list[Observer]:
    """Progress, metrics.jsonl and TensorBoard in the main process; none in the others."""
    if jax.process_index() != 0:
        return []
    progress = Progress(terminal=terminal, headline=headline)
    return [progress, MetricsFile(workdir), TensorBoard(workdir)]


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 FLOP/s of one device, or None where it is not known (CPUs)."""
    chip = chip_of(device_kind)
    return None if chip is None else chip.flops


def utilization(flops: float, seconds: float, devices: Sequence[jax.Device]) -> float | None:
    """Model FLOP utilization (Chowdhery et al. 2022, appendix B): 1.0 = the peak of all devices."""
    peak = peak_flops(devices[0].device_kind)
    return None if peak is None or seconds <= 0 else flops / (seconds * peak * len(devices))


class Progress(Observer):
    """A live bar in a terminal, otherwise one line per record, on stderr.

    Args:
      headline: what is shown of an evaluation's values; None (or where it gives None) shows all.
    """

    def __init__(
        self,
        *,
        terminal: bool | None = None,
        stream: Any = None,
        headline: Headline | None = None,
    ):
        self._headline = headline
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
        text = None
        if self._headline is not None and "steps_per_second" not in values:
            text = self._headline(values)
        text = format_values(values) if text is None else text
        if self._bar is None:
            self.message(f"step {step}/{self._total}  {text}")
        elif "steps_per_second" in values:
            self._bar.update(self._task, completed=step, text=text)
        else:
            self.message(f"step {step}  {text}")

    def message(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def format_values(values: dict[str, float]) -> str:
    """``loss 1.2345  12.3 steps/s  394 examples/s  MFU 41.0%  ETA 0:01:23``."""
    parts = []
    for name, value in values.items():
        if name == "steps_per_second":
            parts.append(f"{value:.3g} steps/s")
        elif name == "examples_per_second":
            parts.append(f"{value:.4g} examples/s")
        elif name == "mfu":
            parts.append(f"MFU {100 * value:.1f}%")
        elif name == "input_wait" and value >= 0.05:
            parts.append(f"waiting for input {100 * value:.0f}%")
        elif name == "eta_seconds":
            parts.append(f"ETA {format_seconds(value)}")
        elif name == "skipped" and value:
            parts.append(f"{value:.0f} skipped")
        elif name == "loss" or "/" in name or name == "accuracy":
            parts.append(f"{name} {value:.4f}")
    return "  ".join(parts)


def format_seconds(seconds: float) -> str:
    """``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class MetricsFile(Observer):
    """``metrics.jsonl``: one JSON object per record; records after a resumed step are removed."""

    def __init__(self, workdir: StrPath):
        self._path = pathlib.Path(workdir) / "metrics.jsonl"
        self._file: Any = None

    def start(self, step: int, total: int) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            write_file(self._path, "".join(f"{line}\n" for line in lines if _until(line, step)))
        self._file = self._path.open("a", encoding="utf-8")

    def record(self, step: int, values: dict[str, float]) -> None:
        # NaN is not JSON.
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _until(line: str, step: int) -> bool:
    """Whether a line is whole (a kill may cut the last) and not after the step."""
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False


class TensorBoard(Observer):
    """Scalars under ``tensorboard/``; those after a resumed step are purged."""

    def __init__(self, workdir: StrPath):
        self._path = pathlib.Path(workdir) / "tensorboard"
        self._writer: Any = None

    def start(self, step: int, total: int) -> None:
        import tensorboardX

        self._writer = tensorboardX.SummaryWriter(str(self._path), purge_step=step + 1)

    def record(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def write_run(workdir: StrPath, mesh: Mesh, **more: Any) -> dict[str, Any]:
    """Write ``run.json``: versions, command, git state, mesh; earlier starts stay in it.

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
    run["earlier"] = []
    with contextlib.suppress(OSError, ValueError):
        former = json.loads(path.read_text(encoding="utf-8"))
        run["earlier"] = [*former.pop("earlier", []), former]
    write_file(path, json.dumps(run, indent=2, default=str) + "\n")
    return run


def git_state(directory: StrPath | None = None) -> dict[str, Any] | None:
    """Commit of the running code and whether files differ from it; None outside git."""
    root = str(directory or pathlib.Path(__file__).parent)

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", "-C", root, *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    versions = {}
    for name in ("mmflax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def parameter_table(params: Any, *, depth: int | None = None) -> str:
    """Path, shape, layout and count of every parameter, with the total.

    Args:
      params: tree of arrays or shapes; shardings are shown where present.
      depth: add up the parameters that share so many leading path segments.
    """
    rows: dict[str, list[Any]] = {}
    for name, leaf in paths.leaves(params).items():
        spec = getattr(getattr(leaf, "sharding", None), "spec", None)
        axes = "" if spec is None else ", ".join("-" if a is None else str(a) for a in spec)
        if depth is None:
            rows[name] = [str(list(leaf.shape)), str(leaf.dtype), f"({axes})", leaf.size]
        else:
            row = rows.setdefault("/".join(name.split("/")[:depth]), ["", "", "", 0])
            row[3] += leaf.size
    rows["total"] = ["", "", "", sum(row[3] for row in rows.values())]
    cells = [[name, *row[:3], f"{row[3]:,}"] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        left = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=False)]
        lines.append("  ".join([*left, row[4].rjust(widths[4])]) + "\n")
    return "".join(lines)
