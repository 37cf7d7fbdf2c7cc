"""Trains mmflax's folder recipe and its peers on a set of the benchmark, at equal wall time.

    python -m benchmarks.small_data.run --data DIR --set NAME --seconds 600 --seeds 3
    python -m benchmarks.small_data.run --data DIR --set NAME --ablate stem,batch
    python -m benchmarks.small_data.run --data DIR --set NAME --final    # test, at the very end

DIR/NAME is a folder that `make` wrote, or any other with questions or captions. For each seed ours
is trained first (`mmflax train --config configs/folder.py:TASK:DIR/NAME`, which takes about
`--seconds`), then every peer for as long as that took, nothing at the same time. Validation alone
is looked at; `--final` evaluates on test. WORKDIR/NAME has the runs, `validation.json` and
`validation.md`, and WORKDIR/validation.md a line for each set; runs that are finished are kept, so
the same command goes on.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mmflax.data.datasets.folder import dataset
from mmflax.evaluation.question_prior import question_prior

from . import report

CONFIG = Path(__file__).parents[2] / "configs" / "folder.py"
PEERS = {"vqa": ("cnn_bag", "words"), "retrieval": ("cnn_infonce",)}
METRICS = {"vqa": ("accuracy",), "retrieval": ("t2i/recall@1", "i2t/recall@1")}
# What `--ablate` compares with the recipe: a name's variants, each with what it changes.
PARTS = ("model.image_encoder", "model.text_encoder", "model.fusion")
ABLATIONS = {
    "stem": {
        "patch": ["model.image_encoder.stem=patch"],
        "conv": ["model.image_encoder.stem=conv"],
    },
    "norm": {
        style: [f"model.{part}.norm_style={style}" for part in ("text_encoder", "fusion")]
        for style in ("pre", "post")
    },
    "qk_init": {
        start: [f"{part}.qk_init={start}" for part in PARTS] for start in ("independent", "shared")
    },
    "optimizer": {name: [f"optim.name={name}"] for name in ("muon", "adamw")},
    "bag": {width: [f"task.bag_of_words={width}"] for width in ("0", "128")},
    "batch": {size: [f"data.batch_size={size}"] for size in ("32", "64", "128")},
    "rate": {rate: [f"optim.schedule.peak={rate}"] for rate in ("3e-4", "5e-4", "2e-3")},
    "augmentation": {
        "none": [
            f"augment.{key}"
            for key in ("crop_scale=none", "flip=off", "brightness=0", "contrast=0", "erase_rate=0")
        ],
        "crop": ["augment.crop_scale=(0.7,1.0)"],
        "color": ["augment.brightness=0.2", "augment.contrast=0.2"],
    },
}
# Those of a task's own key.
OF_TASK = {"bag": "vqa"}
OURS = "mmflax"


def main():
    arguments = parse()
    folder = arguments.data / arguments.set
    task = task_of(folder)
    workdir = arguments.workdir / arguments.set
    split = "test" if arguments.final else "validation"
    peers = [name for name in PEERS[task] if name in arguments.peers.split(",")]
    ours = {OURS: arguments.config_overrides, **ablated(arguments)}
    results = []
    for seed in range(arguments.seeds):
        for name, overrides in ours.items():
            run = workdir / f"{name.replace('=', '_')}-seed{seed}"
            result = kept(run, split) or train_ours(
                folder, task, run, split, arguments.seconds, [*overrides, f"seed={seed}"]
            )
            results.append((name, seed, result))
        seconds = next(
            result["seconds"] for name, k, result in results if (name, k) == (OURS, seed)
        )
        for name in peers:
            run = workdir / f"{name}-seed{seed}"
            result = kept(run, split) or train_peer(folder, task, name, run, split, seconds, seed)
            results.append((name, seed, result))
        if seed == 0 and task == "vqa":
            results.append(("question prior", seed, prior(folder, split)))
        text = report.write(results, METRICS[task], workdir, split, reference=OURS)
    report.overview(arguments.workdir, split)
    print(text)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets' folders")
    parser.add_argument("--set", required=True, help="a folder in it")
    parser.add_argument("--workdir", type=Path, default=Path("runs/small_data"))
    parser.add_argument("--seconds", type=float, default=600, help="ours' time, by its estimate")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peers", default="cnn_bag,words,cnn_infonce", help="comma-separated")
    parser.add_argument("--ablate", default="", help=f"comma-separated, of {', '.join(ABLATIONS)}")
    parser.add_argument("--final", action="store_true", help="evaluate on test")
    parser.add_argument("--config-overrides", nargs="*", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


def ablated(arguments):
    """{name: overrides} of the variants that are asked for, on top of the given ones."""
    names = [name for name in arguments.ablate.split(",") if name]
    if unknown := [name for name in names if name not in ABLATIONS]:
        raise SystemExit(f"--ablate {unknown[0]!r} is not one of {', '.join(ABLATIONS)}")
    task = task_of(arguments.data / arguments.set)
    if other := [name for name in names if OF_TASK.get(name, task) != task]:
        raise SystemExit(
            f"--ablate {other[0]!r} is of {OF_TASK[other[0]]}; {arguments.set} is {task}"
        )
    return {
        f"{name}={value}": [*arguments.config_overrides, *overrides]
        for name in names
        for value, overrides in ABLATIONS[name].items()
    }


def task_of(folder):
    """vqa or retrieval, by the columns of the first row."""
    with open(folder / "train" / "metadata.jsonl", encoding="utf-8") as rows:
        return "vqa" if "question" in json.loads(rows.readline()) else "retrieval"


def kept(run, split):
    """What an earlier command with this workdir measured, or None."""
    path = run / f"result-{split}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def keep(run, split, result):
    run.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1) + "\n"
    (run / f"result-{split}.json").write_text(text, encoding="utf-8")
    return result


def train_ours(folder, task, run, split, seconds, overrides):
    """Trains by the command line, in a fresh workdir, and evaluates on the split.

    A run that was evaluated on another split is not trained again.
    """
    workdir, trained = run / "workdir", run / "trained.json"
    if not trained.exists():
        shutil.rmtree(workdir, ignore_errors=True)
        run.mkdir(parents=True, exist_ok=True)
        words = [f"--config.{word}" for word in (f"recipe.minutes={seconds / 60:g}", *overrides)]
        began = time.perf_counter()
        command(run, "train", "--config", f"{CONFIG}:{task}:{folder}", "--workdir", workdir, *words)
        about = dict(seconds=round(time.perf_counter() - began, 1), **size_of(run, workdir))
        trained.write_text(json.dumps(about), encoding="utf-8")
    command(run, "evaluate", "--workdir", workdir, "--split", split)
    result = json.loads((workdir / "eval" / f"{split}.json").read_text(encoding="utf-8"))
    return keep(run, split, result | json.loads(trained.read_text(encoding="utf-8")))


def size_of(run, workdir):
    """Parameters, of the table that training printed, and steps, of the last line of metrics."""
    log = (run / "log.txt").read_text(encoding="utf-8")
    total = re.findall(r"^total +([\d,]+)$", log, re.MULTILINE)[-1]
    last = (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return {"parameters": int(total.replace(",", "")), "steps": json.loads(last)["step"]}


def command(run, *words):
    """Runs `mmflax` in a process of its own; what it prints goes into `log.txt`."""
    with open(run / "log.txt", "a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", "mmflax.cli", *map(str, words)], stdout=log, stderr=log
        )
    if done.returncode:
        raise SystemExit(f"mmflax {words[0]} failed: {run / 'log.txt'} says why")


def train_peer(folder, task, name, run, split, seconds, seed):
    from . import peers  # PyTorch, of the extra `parity`

    data = peers.read(folder, task, ("train", split))
    return keep(run, split, peers.train_peer(name, data, split, seed=seed, seconds=seconds))


def prior(folder, split):
    """The commonest training answer of each question, in the form of an evaluation."""
    data = dataset.build(path=folder, task="vqa", unseen_answers="wrong")
    source = data.source(split)
    metrics = question_prior(data.source("train"), source)
    return {"examples": len(source), "metrics": {"full": metrics}, "intervals": {}}


if __name__ == "__main__":
    main()
