"""The command line: what can be written, and how errors are shown.

Exit codes: 0 done, 1 failed (one sentence on stderr; ``--debug`` adds the traceback), 2 usage.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.version import __version__

_EXAMPLES = {
    "train": "mmflax train --config configs/shapes_vqa.py --workdir runs/shapes "
    "--config.optim.schedule.peak=5e-4",
    "evaluate": "mmflax evaluate --workdir runs/shapes --split test --json",
    "predict": 'mmflax predict --workdir runs/shapes --image photo.png --text "what color is the '
    'circle?" --attention attention.png',
    "plan": "mmflax plan --config configs/shapes_vqa.py --topology v5e:4x4 --config.mesh.fsdp=4",
    "ablate": "mmflax ablate --config configs/shapes_vqa.py --fusion concat,gated,co_attention "
    "--seeds 3 --workdir runs/ablation --jobs 2",
    "convert": "mmflax convert path/to/bert-base-uncased bert-mmflax --to mmflax --check",
    "config": "mmflax config --config configs/shapes_vqa.py --config.train.epochs=20",
    "data": "mmflax data --config configs/shapes_vqa.py --out batch.png",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    _print_safely()
    parser = _parser()
    options, rest = parser.parse_known_args(words)
    overrides = _overrides(parser, options, rest)
    try:
        from mmflax.distributed import processes
        from mmflax.run import commands

        processes.initialize()
        commands.COMMANDS[options.command](options, overrides)
        return 0
    except KeyboardInterrupt:
        print("mmflax: stopped by the keyboard", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output is closed (such as `| head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(f"mmflax: {_sentence(error)}", file=sys.stderr)
        return _leave(1)


def _print_safely() -> None:
    """A terminal that has no such letters shows their codes, and nothing fails for them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _text(word: str) -> str:
    """A word of the command line, which Python reads as bytes where the locale is ASCII."""
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _leave(code: int) -> int:
    """In a run of several processes the others must not wait for this one."""
    import jax

    if jax.process_count() > 1:
        from mmflax.distributed import processes

        processes.leave(code)
    return code


def _sentence(error: Exception) -> str:
    """What went wrong in one line, for errors of ours, of the system, and unforeseen ones."""
    if isinstance(error, MmflaxError):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            return f"The disk is full{where}; free some space and run the same command again."
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"Writing or reading is not permitted{where}; choose another folder."
        return f"{error.strerror or error}{where}."
    if isinstance(error, MemoryError):
        return (
            "This machine's memory is used up; give a smaller --config.data.batch_size=ROWS, "
            "--config.data.num_threads=1 and --config.data.prefetch=1, or a smaller model."
        )
    text = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}: {text[:400]} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmflax",
        description="Vision-language transformers in JAX: train, evaluate and predict.",
        epilog="`mmflax COMMAND --help` shows a command's options and an example.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mmflax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = _command(commands, "train", "train a model, or go on training it")
    _config_option(train)
    _workdir_option(train, "where everything about the run is written; the same command resumes")

    evaluate = _command(commands, "evaluate", "score a trained model on a split")
    _workdir_option(evaluate, "a folder that `mmflax train` wrote")
    evaluate.add_argument("--split", default="test", help="of its dataset (default: test)")
    _step_option(evaluate)
    evaluate.add_argument(
        "--mistakes", metavar="OUT.png", help="draw the most confident mistakes (a further pass)"
    )
    evaluate.description += (
        " --config.a.b=VALUE changes a value of its config, such as --config.data.path=DIR of data "
        "that were moved."
    )
    evaluate.set_defaults(config=None)

    predict = _command(commands, "predict", "answer a question about a picture, or name it")
    predict.add_argument("--workdir", metavar="DIR", help="a folder that `mmflax train` wrote")
    predict.add_argument(
        "--pretrained", metavar="DIR", help="or a public checkpoint, such as CLIP; with --labels"
    )
    predict.add_argument(
        "--labels", nargs="+", metavar="LABEL", help="what the picture may show, such as cat dog"
    )
    predict.add_argument("--image", metavar="FILE", help="a picture; left out = there is none")
    predict.add_argument(
        "--second-image", metavar="FILE", help="the other one, for two-image tasks"
    )
    predict.add_argument(
        "--text", action="append", type=_text,
        help="what the model reads, such as a question; may repeat",
    )  # fmt: skip
    predict.add_argument("--top", type=int, default=3, help="answers to list (default: 3)")
    predict.add_argument("--attention", metavar="OUT.png", help="draw its text-to-image attention")
    _step_option(predict)

    ablate = _command(commands, "ablate", "train with each kind of fusion; one table")
    _config_option(ablate)
    _workdir_option(ablate, "a folder for all runs and the table; the same command resumes")
    ablate.add_argument(
        "--fusion", required=True, metavar="A,B,…", help="kinds to compare, such as concat,gated"
    )
    ablate.add_argument("--seeds", type=int, default=3, help="runs of each kind (default: 3)")
    ablate.add_argument("--steps", type=int, help="training steps (default: the config's)")
    ablate.add_argument("--split", default="test", help="to compare on (default: test)")
    ablate.add_argument("--metric", help="to compare (default: what ranks the checkpoints)")
    ablate.add_argument(
        "--no-match", action="store_true", help="leave each kind the parameters it comes with"
    )
    ablate.add_argument("--jobs", type=int, default=1, help="runs at a time, on CPU (default: 1)")

    convert = _command(commands, "convert", "public checkpoints to ours, and back")
    convert.add_argument(
        "source", metavar="SRC", help="a folder, a weight file, a hub id, a workdir"
    )
    convert.add_argument("target", metavar="DST", nargs="?", help="a new folder")
    convert.add_argument(
        "--to",
        choices=("hf", "flax", "mmflax"),
        default="hf",
        help="the original's format, the same with Flax weights, or ours",
    )
    convert.add_argument(
        "--check", action="store_true", help="compare with the original in PyTorch (extra parity)"
    )
    convert.add_argument(
        "--family", metavar="NAME", help="what reads SRC, such as my_package.my_family"
    )

    data = _command(commands, "data", "draw a batch from the model's input arrays")
    _config_option(data)
    data.add_argument("--split", default="train", help="(default: train)")
    data.add_argument("--rows", type=int, default=3, help="rows of six examples (default: 3)")
    data.add_argument("--out", default="data.png", metavar="OUT.png", help="(default: data.png)")

    config = _command(commands, "config", "check a config; print all its values and their sources")
    _config_option(config)

    plan = _command(
        commands, "plan", "what a step needs: compile for a TPU slice that need not be there"
    )
    _config_option(plan)
    plan.add_argument(
        "--topology", metavar="NAME", help="such as v5e:4x4 (default: this machine's devices)"
    )
    plan.add_argument("--price", type=float, metavar="MONEY", help="of one chip for an hour")
    plan.add_argument("--figure", metavar="OUT.png", help="draw the memory and the time")
    plan.add_argument("--hlo", metavar="FILE", help="write the compiled program's text")
    plan.add_argument(
        "--layout", action="store_true", help="only list where each parameter lies; no compilation"
    )
    plan.add_argument(
        "--search",
        type=int,
        nargs="?",
        const=3,
        metavar="N",
        help="try meshes, rematerialization and micro-batches; compile the N most promising "
        "(default: 3) and print the best command",
    )
    return parser


def _command(commands: Any, name: str, help: str) -> Any:
    command = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=f"example:\n  {_EXAMPLES[name]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    command.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return command


def _config_option(command: Any) -> None:
    command.add_argument(
        "--config",
        required=True,
        metavar="FILE.py[:ARG]",
        help="a config; --config.a.b=VALUE changes one of its values",
    )


def _step_option(command: Any) -> None:
    command.add_argument(
        "--step",
        type=_step,
        metavar="best|last|STEP",
        help="which checkpoint (default: best, by checkpoint.best_metric; last where none ranks)",
    )


def _step(word: str) -> int | str:
    """``best``, ``last`` or a number."""
    if word in ("best", "last"):
        return word
    try:
        return int(word)
    except ValueError:
        text = f"{word!r} is no checkpoint; expected best, last or a step"
        raise argparse.ArgumentTypeError(text) from None


def _workdir_option(command: Any, help: str) -> None:
    command.add_argument("--workdir", required=True, metavar="DIR", help=help)


def _overrides(parser: argparse.ArgumentParser, options: Any, rest: list[str]) -> list[str]:
    """The ``--config.a.b=value`` words; ``--config.a.b value`` is joined; the rest is refused."""
    overrides: list[str] = []
    words = iter(rest)
    for word in words:
        if not word.startswith("--config.") or not hasattr(options, "config"):
            parser.error(f"unrecognized argument {word!r} of {options.command}")
        if "=" not in word:
            value = next(words, None)
            if value is None:
                parser.error(f"{word} needs a value: {word}=VALUE")
            word = f"{word}={value}"
        overrides.append(word)
    return overrides


if __name__ == "__main__":
    sys.exit(main())
