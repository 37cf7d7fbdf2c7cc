"""Many runs, one table: the same training with each kind of fusion, several seeds of each.

Kinds are compared at equal numbers of parameters (`mmflax.run.match_parameters`), on the same data
in the same order, and seed k starts every kind from the same seed. Each run is a workdir of its own
below the ablation's, so whatever was finished is kept and the same command goes on.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mmflax.config import auto, schema
from mmflax.config.compare import check_same_run, differences
from mmflax.errors import MmflaxError
from mmflax.run import ablation_report
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.decide import opened
from mmflax.run.evaluate import evaluate, metric_names
from mmflax.run.finetune.resolve import resolved
from mmflax.run.match_parameters import TOLERANCE, Variant, switch, variants
from mmflax.run.train import train
from mmflax.run.workdir import read_config

# Fields that do not change a finished run's results.
_HOW = (
    *(
        "mesh",
        "recipe",
        "data.num_threads",
        "data.prefetch",
        "train.log_every",
        "checkpoint.keep_last",
    ),
    *("data.changed", "data.path", "data.data_dir", "data.source_dir"),
)
_LOG = "log.txt"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a kind of fusion and a seed."""

    variant: Variant
    seed: int
    workdir: pathlib.Path

    @property
    def name(self) -> str:
        return self.workdir.name

    @property
    def config(self) -> dict[str, Any]:
        return {**self.variant.config, "seed": self.seed}


def ablate(
    config: Mapping[str, Any],
    workdir: str,
    kinds: Sequence[str],
    *,
    seeds: int = 3,
    split: str = "test",
    metric: str | None = None,
    match: bool = True,
    jobs: int = 1,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Trains and evaluates every kind x seed; writes ``ablation.json``, ``.md`` and ``.png``.

    Args:
      config: of the reference, whose fusion is replaced.
      kinds: names of fusions.
      seeds: runs of each kind; run k has the config's seed + k.
      metric: the one that is compared; by default what the config ranks checkpoints by.
      match: give every kind as many parameters as the config's own (within 2 %).
      jobs: runs at a time, each a process with its share of the cores (CPU only).
      log: called with a line of progress.

    Returns:
      What ``ablation.json`` holds; see ``mmflax.run.ablation_report.summarize``.

    Raises:
      MmflaxError: before anything trains for an unknown kind, one that cannot be matched, a split
        that does not exist, or a workdir with runs of another config.
    """
    config = resolved(config, say=log, new_fusion=True)
    runs = plan(config, workdir, kinds, seeds=seeds, split=split, match=match, jobs=jobs, log=log)
    for variant in {run.variant.kind: run.variant for run in runs}.values():
        if variant.dropped:
            log(f"{variant.kind} has no {', '.join(variant.dropped)}: left out of its config")
    waiting = [run for run in runs if not finished(run, split)]
    if len(waiting) < len(runs):
        log(f"{len(runs) - len(waiting)} of {len(runs)} runs are finished already")
    if metric is not None:  # an unknown one is an error before anything trains
        ended = next((run for run in runs if run not in waiting), None)
        ablation_report.check_metric(
            metric,
            metric_names(config, split)
            if ended is None
            else _result(ended, split)["metrics"]["full"],
        )
    began = time.perf_counter()
    ending = _in_turn(waiting, split) if jobs == 1 else _at_once(waiting, split, jobs)
    for done, run in enumerate(ending, start=1):
        minutes = (time.perf_counter() - began) / 60
        log(f"{run.name}: finished, {done} of {len(waiting)}, after {minutes:.1f} min")
    kind_of = {variant.kind: variant for variant in (run.variant for run in runs)}
    summary = {
        "split": split,
        "steps": runs[0].config["train"]["steps"],
        "matched_within": TOLERANCE if match else None,
        **ablation_report.summarize(
            [(run.variant.kind, run.seed, _result(run, split)) for run in runs],
            metric or _metric(config),
            reference=config["model"]["fusion"]["name"],
        ),
    }
    for kind, values in summary["kinds"].items():
        variant = kind_of[kind]
        values |= {"parameters": variant.parameters, "dropped": list(variant.dropped)}
        values |= {k: variant.fusion[k] for k in ("mlp_dim", "depth") if k in variant.fusion}
    ablation_report.write(summary, pathlib.Path(workdir))
    return summary


def plan(
    config: Mapping[str, Any],
    workdir: str,
    kinds: Sequence[str],
    *,
    seeds: int,
    split: str,
    match: bool = True,
    jobs: int = 1,
    log: Callable[[str], None] = lambda line: None,
) -> list[Run]:
    """Every run, seed by seed, so that all kinds have one early; all is checked before any runs."""
    kinds = list(dict.fromkeys(kinds))
    if not kinds or seeds < 1 or jobs < 1:
        raise MmflaxError(
            f"There are {len(kinds)} kinds of fusion, {seeds} seeds and {jobs} jobs; each must be "
            "at least 1."
        )
    root = pathlib.Path(workdir)
    checked = Experiment(_as_decided(config, root))
    check(checked)
    for kind in kinds:
        check(Experiment(switch(config, kind)[0]))
    if jax.process_count() > 1 or (jobs > 1 and jax.default_backend() != "cpu"):
        raise MmflaxError(
            f"{jobs} jobs on {jax.process_count()} process(es) of {jax.default_backend()}: an "
            "ablation is one process, and only CPU cores can be shared; use --jobs 1 there."
        )
    dataset = checked.dataset()
    dataset.source(split)
    checked, processor, decided = opened(checked, dataset)
    for line in decided:
        log(f"decided by the data: {line}")
    config = checked.of_length(len(dataset.source("train"))).config
    matched = variants(config, kinds, processor, match=match)
    runs = [
        Run(variant, seed, root / f"{variant.kind.replace('.', '_')}-seed{seed}")
        for seed in range(checked.seed, checked.seed + seeds)
        for variant in matched
    ]
    for run in runs:
        if (run.workdir / "config.json").exists():
            check_same_run(read_config(run.workdir), run.config, run.workdir)
    return runs


def _as_decided(config: Mapping[str, Any], root: pathlib.Path) -> Mapping[str, Any]:
    """The config with what the data decided when the ablation began, which all its runs share."""
    for file in sorted(root.glob("*/config.json")):
        decided = schema.at(read_config(file.parent), "recipe.decided")
        values = {key: value for key, value in decided.items() if key in auto.undecided(config)}
        if values:
            return auto.filled(config, values) | {
                "recipe": {**(config.get("recipe") or {}), "decided": values}
            }
    return config


def finished(run: Run, split: str) -> bool:
    """Whether the workdir holds this run's evaluation on the split, with all its steps trained."""
    if not (run.workdir / "config.json").exists() or not _path(run, split).exists():
        return False
    lines = differences(read_config(run.workdir), run.config)
    return all(line.startswith(tuple(f"{k}{end}" for k in _HOW for end in ":.")) for line in lines)


def train_and_evaluate(config: Mapping[str, Any], workdir: str, split: str) -> None:
    """One run, or what is left of it."""
    path = pathlib.Path(workdir) / "eval" / f"{split}.json"
    path.unlink(missing_ok=True)  # of a shorter training, it would pass for this one's
    result = train(config, workdir, quiet=True)
    if result.preempted:
        raise MmflaxError(
            f"The run in {workdir} was told to stop at step {result.step}; the same command goes "
            "on."
        )
    evaluate(workdir, split)


def _in_turn(runs: Sequence[Run], split: str) -> Iterator[Run]:
    for run in runs:
        train_and_evaluate(run.config, str(run.workdir), split)
        jax.clear_caches()  # no run compiles what another did
        yield run


# The cores must be set before a library counts them.
_CHILD = """
import json, os, sys, traceback
job = json.load(sys.stdin)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, job["cores"])
from mmflax import MmflaxError
from mmflax.run import ablate
try:
    ablate.train_and_evaluate(job["config"], job["workdir"], job["split"])
except MmflaxError as error:
    sys.exit(" ".join(str(error).split()))
except Exception as error:
    traceback.print_exc()
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
"""


def _at_once(runs: Sequence[Run], split: str, jobs: int) -> Iterator[Run]:
    """``jobs`` processes at a time; what each prints goes into ``log.txt`` of its workdir."""
    waiting, shares = list(runs), _shares(jobs)
    busy: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    try:
        while waiting or busy:
            for place, cores in enumerate(shares):
                if place not in busy and waiting:
                    run = waiting.pop(0)
                    busy[place] = run, _start(run, split, cores)
            for place, (run, process) in list(busy.items()):
                if process.poll() is None:
                    continue
                del busy[place]
                if process.returncode:
                    raise MmflaxError(f"The run {run.name} failed: {_last_line(run)}")
                yield run
            time.sleep(0.1)
    finally:
        for _, process in busy.values():
            process.terminate()  # it saves where it is
        for _, process in busy.values():
            process.wait()


def _start(run: Run, split: str, cores: list[int]) -> subprocess.Popen[bytes]:
    run.workdir.mkdir(parents=True, exist_ok=True)
    job = {"cores": cores, "config": run.config, "workdir": str(run.workdir), "split": split}
    with (run.workdir / _LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    assert process.stdin is not None
    process.stdin.write(json.dumps(job, default=str).encode())
    process.stdin.close()
    return process


def _shares(jobs: int) -> list[list[int]]:
    """The cores of each of ``jobs`` processes; they overlap only where there are too few."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    return [cores[place::jobs] or [cores[place % len(cores)]] for place in range(jobs)]


def _last_line(run: Run) -> str:
    lines = (run.workdir / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'it printed nothing'} ({run.workdir / _LOG})"


def _path(run: Run, split: str) -> pathlib.Path:
    return run.workdir / "eval" / f"{split}.json"


def _result(run: Run, split: str) -> dict[str, Any]:
    return json.loads(_path(run, split).read_text(encoding="utf-8"))


def _metric(config: Mapping[str, Any]) -> str | None:
    """What the config ranks checkpoints by, without its split."""
    best = config.get("checkpoint", {}).get("best_metric")
    return best.partition("/")[2] if best else None
