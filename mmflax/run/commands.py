"""What each command of the command line does: calls of `mmflax.run`, and what they print."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmflax.data.region_files import read_regions
from mmflax.errors import MmflaxError
from mmflax.files import check_folder, write_file


def _print(options: Any, value: Any, text: str) -> None:
    from mmflax.distributed import processes

    if processes.is_main():
        print(json.dumps(value, default=str) if options.json else text, flush=True)


def _read(options: Any, overrides: Sequence[str]) -> dict[str, Any]:
    """The config, with what the overrides leave without a meaning printed to stderr."""
    from mmflax.config.reading import load_config
    from mmflax.distributed import processes

    def note(line: str) -> None:
        if processes.is_main():
            print(f"note: {line}", file=sys.stderr, flush=True)

    return load_config(options.config, overrides, note)


def _train(options: Any, overrides: list[str]) -> None:
    from mmflax.run.train import train

    config = _read(options, overrides)
    reports: list[Any] = []
    result = train(config, options.workdir, quiet=options.json, at_end=reports.append)
    value = {
        "workdir": options.workdir,
        "step": result.step,
        "preempted": result.preempted,
        "stopped": result.stopped,
        "metrics": result.metrics,
        **({"report": dataclasses.asdict(reports[0])} if reports else {}),
    }
    lines = [line for report in reports for line in report.lines()]
    if reports and reports[0].checkpoint:
        lines.append(f"evaluate and predict take {reports[0].checkpoint} (--step last: the last)")
    done = "stopped" if result.preempted else "stopped early" if result.stopped else "done"
    lines.append(f"{done} at step {result.step}; everything is in {options.workdir}")
    _print(options, value, "\n".join(lines))


def _evaluate(options: Any, overrides: list[str]) -> None:
    from mmflax.evaluation.tables import table
    from mmflax.run.evaluate import evaluate

    result = evaluate(
        options.workdir, options.split, options.step, overrides, mistakes=options.mistakes
    )
    text = table(result)
    if options.mistakes and result["mistakes"]:
        count = result["mistakes_in_all"]
        text += f"\nmost confident mistakes, of {count}: {result['mistakes']}"
    elif options.mistakes:
        text += f"\nno mistake to draw in {options.mistakes}"
    _print(options, result, text)


def _predict(options: Any, overrides: list[str]) -> None:
    from mmflax.inference import attention_figure
    from mmflax.run.load import load

    if (options.workdir is None) == (options.pretrained is None):
        raise MmflaxError(
            "Name what to ask: --workdir DIR of a run, or --pretrained DIR; one of both."
        )
    if options.pretrained is not None:
        return _name(options)
    if options.labels:
        raise MmflaxError("--labels goes with --pretrained; a trained run has its own answers.")
    if options.image is None and options.text is None:
        raise MmflaxError("There is nothing to look at; give --image FILE, --text TEXT, or both.")
    texts = options.text or [None]
    if options.attention and (len(texts) > 1 or options.image is None):
        raise MmflaxError("--attention draws one text over one picture; give one of each.")
    run = load(options.workdir, step=options.step)
    if run.task.predict is None and run.task.search is not None:
        return _compare(options, run)
    image, second = (_seen(given) for given in (options.image, options.second_image))
    predictions = run.predict(image, texts, second_image=second, top=options.top)
    if options.attention:
        attention_figure.draw(run, options.image, texts[0], options.attention)
    values = [dataclasses.asdict(p) for p in predictions]
    if not options.json:
        print(f"checkpoint of {run.checkpoint}", file=sys.stderr, flush=True)
    lines = [p.answer + _shares(p.top) for p in predictions]
    if options.attention:
        lines.append(f"attention: {options.attention}")
    _print(options, values[0] if len(values) == 1 else values, "\n".join(lines))


def _seen(given: str | None) -> Any:
    """A picture's file, or what a detector found in it, from an ``.npz``."""
    return read_regions(given) if given is not None and given.endswith(".npz") else given


def _compare(options: Any, run: Any) -> None:
    """How well texts fit a picture, best first, by a run that ranks them by each other."""
    from mmflax.inference.search import Retriever

    if options.image is None or not options.text or options.second_image or options.attention:
        raise MmflaxError(
            "This run compares a picture with texts; give --image FILE and --text TEXT (several "
            "are ranked), only."
        )
    retriever = Retriever(run.task.search, run.params, run.processor, batch_size=8)
    count = len(options.text)
    results = retriever.find_texts(options.image, options.text, top=count, rerank=count)
    values = [
        {
            "text": options.text[result.index],
            "similarity": result.similarity,
            "match": None if result.match is None else float(1 / (1 + np.exp(-result.match))),
        }
        for result in results
    ]
    lines = [
        f"{value['text']}  (cosine similarity {value['similarity']:.3f}"
        + ("" if value["match"] is None else f", match {value['match']:.1%}")
        + ")"
        for value in values
    ]
    _print(options, values[0] if count == 1 else values, "\n".join(lines))


def _name(options: Any) -> None:
    """Zero-shot: which of the labels a picture shows."""
    from mmflax.inference.zero_shot import ZeroShot
    from mmflax.pretrained.checkpoint import from_pretrained

    if not options.labels or options.image is None or options.text or options.attention:
        raise MmflaxError(
            "--pretrained names a picture: give --image FILE and --labels A B …, only."
        )
    zero_shot = ZeroShot(from_pretrained(options.pretrained), options.labels, batch_size=8)
    prediction = zero_shot.predict(options.image, top=options.top)
    _print(options, dataclasses.asdict(prediction), prediction.answer + _shares(prediction.top))


def _shares(top: Sequence[tuple[str, float]]) -> str:
    return f"  ({', '.join(f'{name} {share:.1%}' for name, share in top)})" if top else ""


def _convert(options: Any, overrides: list[str]) -> None:
    from mmflax.run import convert, original

    if options.target is None and not options.check:
        raise MmflaxError(
            "There is nothing to do; name a new folder DST, or give --check, or both."
        )
    value: dict[str, Any] = {"source": options.source}
    lines = []
    if options.target is not None:
        value["target"] = options.target
        value["notes"] = convert.convert(
            options.source, options.target, to=options.to, family=options.family
        )
        lines = [*value["notes"], f"written: {options.target} ({options.to})"]
    if options.check:
        checked = options.target if options.target and options.to == "hf" else options.source
        found = original.check(checked, family=options.family)
        value["architecture"], value["largest_difference"], value["not_compared"] = found
        lines += [f"compared with {found.architecture} of transformers"]
        lines += [
            f"{name}: differs by {difference:.1e} of its largest value"
            for name, difference in found.differences.items()
        ]
        lines += found.notes
    _print(options, value, "\n".join(lines))
    for name, difference in value.get("largest_difference", {}).items():
        if not difference < original.BOUND:
            raise MmflaxError(
                f"{name} differs from the original by {difference:.1e} of its largest value; "
                f"expected less than {original.BOUND:.0e}. Do not rely on this conversion."
            )


def _config(options: Any, overrides: list[str]) -> None:
    from mmflax.config import resolved
    from mmflax.run.build import Experiment
    from mmflax.run.check import check
    from mmflax.run.finetune.resolve import resolved as from_checkpoint

    asked = _read(options, overrides)
    config = from_checkpoint(asked)
    check(Experiment(config))
    values = resolved.resolve(config, overrides, asked)
    sources = {value.key: value.source for value in values}
    _print(options, {"config": resolved.nested(values), "sources": sources}, resolved.table(values))


def _plan(options: Any, overrides: list[str]) -> None:
    from mmflax.inference.attention_figure import check_picture
    from mmflax.run import plan as planning
    from mmflax.run import plan_report

    if options.price is not None and not 0 <= options.price < float("inf"):
        raise MmflaxError(f"--price is {options.price}; expected money for one chip and hour.")
    if options.search is not None and options.search < 1:
        raise MmflaxError(f"--search is {options.search}; expected how many to compile, from 1.")
    ignored = [
        f"--{name}"
        for name in ("search", "hlo", "figure", "price")
        if (options.layout or (options.search is not None and name == "hlo"))
        and vars(options)[name] is not None
    ]
    if ignored:
        other = "--layout" if options.layout else "--search"
        raise MmflaxError(f"{other} does not use {ignored[0]}; leave one of them out.")
    # Before minutes of compilation.
    if options.hlo is not None:
        check_folder(options.hlo)
    if options.figure is not None:
        check_picture(options.figure)
    config = _read(options, overrides)
    if options.layout:
        table = planning.layout(config, options.topology)
        _print(options, {"layout": table.splitlines()}, table)
        return
    if options.search is not None:
        _search(options, config, overrides)
        return
    decided: list[str] = []
    programs: list[str] = []
    planned = planning.plan(
        config, options.topology, decided.append, price=options.price, see=programs.append
    )
    if options.hlo is not None:
        write_file(options.hlo, programs[0])
    if options.figure is not None:
        plan_report.figure(planned, options.figure)
    lines = [f"{line}\n" for line in decided]
    _print(options, plan_report.values(planned), "".join(lines) + plan_report.text(planned))


def _search(options: Any, config: dict[str, Any], overrides: list[str]) -> None:
    from mmflax.run import plan_report, plan_search

    found = plan_search.search(
        config,
        options.topology,
        lambda line: print(line, file=sys.stderr, flush=True),
        price=options.price,
        compile_most=options.search,
    )
    best = found.tried[0]
    assert best.plan is not None
    if options.figure is not None:
        plan_report.figure(best.plan, options.figure)
    decided = {word.partition("=")[0] for word in found.words}
    kept = [word for word in overrides if word.partition("=")[0] not in decided]
    words = ["mmflax", "train", "--config", options.config, *kept, *found.words, "--workdir", "DIR"]
    command = shlex.join(words)
    value = {
        "best": plan_report.values(best.plan),
        "overrides": list(found.words),
        "considered": found.considered,
    }
    _print(options, value, f"{plan_search.table(found)}\nbest: {command}")


def _ablate(options: Any, overrides: list[str]) -> None:
    from mmflax.run import ablate
    from mmflax.run.ablation_report import markdown

    if options.steps is not None:
        overrides = [*overrides, f"--config.train.steps={options.steps}"]
    summary = ablate.ablate(
        _read(options, overrides),
        options.workdir,
        [kind for kind in options.fusion.split(",") if kind],
        seeds=options.seeds,
        split=options.split,
        metric=options.metric,
        match=not options.no_match,
        jobs=options.jobs,
        log=lambda line: print(line, file=sys.stderr, flush=True),
    )
    where = f"{options.workdir}/ablation.json, .md and .png"
    _print(options, summary, f"{markdown(summary)}\neverything is in {where}")


def _data(options: Any, overrides: list[str]) -> None:
    from mmflax.evaluation.tables import left_out
    from mmflax.inference.batch_figure import draw
    from mmflax.run.examples import first_batch

    if options.rows < 1:
        raise MmflaxError(f"--rows is {options.rows}; draw at least 1.")
    shown = first_batch(_read(options, overrides), options.split, 6 * options.rows)
    draw(shown.batch, shown.processor, options.out)
    notes = "".join(f"note: {note}\n" for note in shown.notes)
    notes += "".join(f"decided by the data: {line}\n" for line in shown.decided)
    value = {
        "out": options.out,
        "notes": list(shown.notes),
        **({"decided": list(shown.decided)} if shown.decided else {}),
        "splits": {name: len(source) for name, source in shown.dataset.splits.items()},
        "answers": list(shown.processor.answers),
        "vocabulary": shown.processor.tokenizer.vocab_size,
        "max_length": shown.processor.max_length,
        **({"bad_images": dict(shown.bad)} if shown.bad else {}),
    }
    _print(
        options,
        value,
        f"{shown.dataset.describe()}\n  {len(shown.processor.answers)} answers, "
        f"{shown.processor.tokenizer.vocab_size} word pieces, questions of at most "
        f"{shown.processor.max_length} tokens\n{notes}a batch as the model reads it: {options.out}"
        + "".join(f"\n{line}" for line in left_out(shown.bad)),
    )


COMMANDS: dict[str, Callable[[Any, list[str]], None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
    "ablate": _ablate,
    "convert": _convert,
    "data": _data,
    "config": _config,
    "plan": _plan,
}
