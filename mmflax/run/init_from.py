"""Initializing a run from a published checkpoint or another run.

``config.init`` names the sources: ``from`` for the whole model, ``image_encoder.from``,
``text_encoder.from`` and ``fusion.from`` for a part (a part's goes before the whole's), ``skip``
for what starts at random all the same; ``family`` beside a ``from`` is that of `from_pretrained`.
Every parameter of the run is accounted for: loaded, resized, new because ``skip`` names it, or an
error that names it. The heads of pretraining objectives are new where the checkpoint lacks them;
an MLM head also starts from that of the checkpoint that the text encoder starts from.

Equal shapes are not enough: the modules that the loaded weights belong to must compute the same
function (`init_meaning`), and batches must be made as the weights expect (`init_inputs`). What
differs is an error, unless ``accept_changes`` names its field.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mmflax import paths
from mmflax.config.sections import PARTS
from mmflax.errors import MmflaxError, option
from mmflax.pretrained.inspect import LazyArray
from mmflax.pretrained.rules import some_of
from mmflax.run import init_inputs
from mmflax.run.init_fit import BACKBONE, OBJECTIVE_HEAD, aliases, fitted, lookup
from mmflax.run.init_meaning import Difference, module_differences, refuse, units
from mmflax.run.init_sources import (
    Model,
    Opened,
    Source,
    accepted,
    opened_for,
    skipped,
    sources,
)


@dataclasses.dataclass(frozen=True)
class Start:
    """What each parameter of a run starts from.

    Attributes:
      values: path -> a parameter that is read when it is placed.
      how: path -> "loaded", "resized", "rows added" or "new".
      unused: of the checkpoints' parameters, those that the run has no place for.
      sources: part (or "model") -> where it came from.
      notes: lines on what differs from the source, by the user's leave or by choice.
    """

    values: Mapping[str, LazyArray]
    how: Mapping[str, str]
    unused: tuple[str, ...]
    sources: Mapping[str, Source]
    notes: tuple[str, ...] = ()

    def params(self, init: Callable[[jax.Array], Any], key: jax.Array) -> Any:
        """The whole tree: what is new is drawn as a run without a start draws it."""
        new = [path for path, how in self.how.items() if how == "new"]
        values: dict[str, Any] = dict(self.values)
        if new:
            init_key, _ = jax.random.split(key)

            def draw(key: jax.Array) -> dict[str, Any]:
                flat = paths.leaves(init(key))
                return {path: flat[path] for path in new}

            values |= {path: np.asarray(leaf) for path, leaf in jax.jit(draw)(init_key).items()}
        return paths.nested(values)

    def table(self) -> str:
        """Parts of the model, and how many of their parameters started how."""
        rows: dict[str, collections.Counter[str]] = {}
        for path, how in self.how.items():
            name = path.removeprefix(BACKBONE).split("/")[0]
            rows.setdefault(name, collections.Counter())[how] += 1
        lines = ["started from"]
        lines += [f"  {part}: {source}" for part, source in self.sources.items()]
        for name, row in rows.items():
            counts = ", ".join(f"{count} {how}" for how, count in sorted(row.items()))
            lines.append(f"  {name:24} {counts}")
        changed = [f"{p} ({how})" for p, how in self.how.items() if how not in ("loaded", "new")]
        if changed:
            lines.append(f"  changed: {some_of(changed, 8)}")
        if self.unused:
            lines.append(f"  left in the checkpoint: {some_of(self.unused, 8)}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def start(
    fields: Mapping[str, Any], shapes: Mapping[str, Any], model: Model | None = None
) -> Start | None:
    """The start that `config.init` configures, or None; weights are read later.

    Args:
      fields: the config's section `init`.
      shapes: path -> shape of every parameter of the run.
      model: what the run computes and reads; without it nothing but shapes is compared, and no
        table of image positions is resized.

    Raises:
      MmflaxError: an unknown key, a source that cannot be read, parameters that are missing or of
        another shape, or weights that mean something else in the run (all are listed).
    """
    wanted = sources(fields)
    if not wanted:
        return None
    skip = skipped(fields)
    given_by = {source: opened_for(source, shapes) for source in dict.fromkeys(wanted.values())}
    values: dict[str, LazyArray] = {}
    how: dict[str, str] = {}
    origin: dict[str, Source] = {}
    problems: list[str] = []
    unfit: list[str] = []
    used: dict[Source, set[str]] = {source: set() for source in given_by}
    for path, leaf in shapes.items():
        name = path.removeprefix(BACKBONE)
        source = wanted.get(name.split("/")[0], wanted.get("model"))
        borrowed = source is None and OBJECTIVE_HEAD.match(name) is not None
        if borrowed:
            source = wanted.get("text_encoder")
        if source is None or any(re.search(pattern, path) for pattern in skip):
            how[path] = "new"
            continue
        given, names = lookup(given_by[source].parameters, name)
        shape = tuple(leaf.shape)
        found = None
        if given is not None:
            encoders = (one and one.image_encoder for one in (given_by[source].model, model))
            found = fitted(name, given, shape, *encoders)
        if found is not None:
            used[source] |= names
            values[path], how[path] = found
            origin[name] = source
        elif borrowed or (given is None and name.startswith("objectives_")):
            how[path] = "new"
        elif given is None:
            unfit.append(path)
            problems.append(f"{path} is not in {source}")
        else:
            unfit.append(path)
            problems.append(f"{path} is {list(given.shape)} in {source}, not {list(shape)}")
    if fields.get("skip") is not None:
        for pattern in skip:
            if not any(re.search(pattern, path) for path in shapes):
                left = tuple(other for other in skip if other != pattern)
                raise MmflaxError(
                    f"init.skip has {pattern!r}, which matches no parameter (paths look like "
                    f"{next(iter(shapes), '')!r}); correct it or remove it, as in "
                    f"{option('init.skip', left)}."
                )
    if problems:
        hint = ""
        if any("word_embedding" in problem for problem in problems):
            words_of = next(
                str(wanted[part]) for part in ("text_encoder", "model") if part in wanted
            )
            hint = f" The word table is another vocabulary's: {option('processor.from', words_of)}."
        raise MmflaxError(
            f"The weights do not fit the model: {some_of(problems, 8)}.{hint} Change the model's "
            f"fields, or let these start at random: {option('init.skip', skip + _patterns(unfit))}."
        )
    notes = [] if model is None else _compare(origin, given_by, model, accepted(fields))
    parts = {part for part in PARTS if part in wanted}
    unused = [
        name
        for source, one in given_by.items()
        for name in one.parameters
        if name not in used[source]
        and (wanted.get("model") == source or name.split("/")[0] in parts)
    ]
    return Start(values, how, tuple(unused), wanted, tuple(notes))


def _patterns(unfit: Sequence[str]) -> tuple[str, ...]:
    """Regular expressions of these paths, or of the modules they are in where they are many."""
    if len(unfit) > 4:
        unfit = list(dict.fromkeys("/".join(path.split("/")[:3]) for path in unfit))
    return tuple(f"^{path}" for path in unfit)


def _compare(
    origin: Mapping[str, Source],
    given_by: Mapping[Source, Opened],
    ours: Model,
    accepted: tuple[str, ...],
) -> list[str]:
    """Raises where weights mean something else in the run; returns notes for people.

    Args:
      origin: the run's path of every parameter that is loaded, and its source.
      given_by: what each source is.
      ours: the run.
      accepted: fields that may differ.
    """
    found: dict[Source, list[Difference]] = {}
    notes: list[str] = []
    for source, (_, theirs, said) in given_by.items():
        notes += said
        loaded = [name for name, one in origin.items() if one == source]
        if not loaded:
            continue
        if theirs is None:
            notes.append(f"nothing but shapes could be compared with {source}")
            continue
        differs = part_differences(loaded, theirs, ours, source, notes)
        differs += input_differences(loaded, theirs, ours, source, notes)
        found[source] = differs
    return notes + refuse(found, accepted)


def part_differences(
    loaded: Collection[str], theirs: Model, ours: Model, source: object, notes: list[str]
) -> list[Difference]:
    """What differs in the modules that the parameters named in `loaded` belong to."""
    differs: list[Difference] = []
    for path, module in units(ours.modules).items():
        if not any(name.startswith(f"{path}/") for name in loaded):
            continue
        names = [name.removesuffix("/") for name in aliases(f"{path}/")]
        other = next((theirs.modules[name] for name in names if name in theirs.modules), None)
        if other is None:
            notes.append(f"{path} is no module of its own in {source}: only shapes compared")
        else:
            differs += module_differences(path, other, module)
    return differs


def input_differences(
    loaded: Collection[str], theirs: Model, ours: Model, source: object, notes: list[str]
) -> list[Difference]:
    """What differs in pooling, pixels, words and answers, for the weights that read them."""
    differs: list[Difference] = []
    roots = (theirs.modules.get(""), ours.modules.get(""))
    for side in ("image", "text"):
        if any(name.startswith(f"{side}_projection/") for name in loaded):
            a, b = (getattr(root, f"{side}_pool", None) for root in roots)
            if None not in (a, b) and a != b:
                key = f"task.{side}_pool={a}"
                differs.append(Difference("task", f"{side}_pool", a, b, key))
    if any(name.startswith("image_encoder/") for name in loaded):
        differs += init_inputs.pixel_differences(theirs, ours, source)
        notes += init_inputs.pixel_notes(theirs, ours, source)
    if any("word_embedding" in name for name in loaded):
        differs += init_inputs.word_differences(theirs, ours, source)
        if getattr(theirs.processor, "tokenizer", None) is None:
            why = f" ({theirs.unread})" if theirs.unread else ""
            notes.append(f"{source} has no tokenizer to compare with the run's{why}")
    if any(re.match(r"head/.*fc2/", name) for name in loaded):
        differs += init_inputs.answer_differences(theirs, ours)
    return differs
