"""The sources that ``config.init`` names: what they are, their parameters and their parts.

A source is the workdir of a run or a published checkpoint. Weights are read later, one by one.
"""

from __future__ import annotations

import functools
import itertools
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from mmflax import paths, registry
from mmflax.checkpoints import checksums
from mmflax.checkpoints.store import Store
from mmflax.config.sections import PARTS, regexes
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.models.called import traced
from mmflax.models.contracts import ImageEncoder
from mmflax.pretrained.inspect import LazyArray, inspect
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.run.build import Experiment, example_batch
from mmflax.run.former import is_run
from mmflax.run.workdir import read_config

KEYS = ("from", "family", "skip", "accept_changes", *PARTS)
SKIP = (r"(^|/)(head|grounding)/",)
BACKBONE = "backbone/"
# The same number under two names: a retrieval run's, a published pair of encoders'.
_NAMES = {"temperature/scale": "logit_scale", "temperature/bias": "logit_bias"}
_NAMES |= {theirs: ours for ours, theirs in _NAMES.items()}
# The MLM head of an objective and of a published model.
OBJECTIVE_HEAD = re.compile(r"objectives_\w+/words/")
_PUBLISHED_HEAD = "word_head/"
_OBJECTIVES_WITH_WORDS = ("mlm", "prefix_lm")


class Source(NamedTuple):
    """A workdir, or a published checkpoint and the family that reads it (None: by its config)."""

    path: str
    family: str | None = None

    def __str__(self) -> str:
        return self.path


class Model(NamedTuple):
    """What loaded weights mean: that of a source, and that of the run which starts from it.

    Attributes:
      modules: path without `backbone/` -> the module there, its fields resolved; "" is the whole.
      image_encoder: the image encoder unbound, or None.
      processor: what makes a batch of it, or None where the files for that are not there.
      answers: what its head's scores stand for; empty where that is not known.
      unread: why its processor's files cannot be read, if they are there and cannot.
    """

    modules: Mapping[str, Any]
    image_encoder: ImageEncoder | None
    processor: Processor | PublishedProcessor | None
    answers: tuple[str, ...]
    unread: str = ""


class Opened(NamedTuple):
    """A source that is read: every parameter by its path without `backbone/`, the model, notes."""

    parameters: Mapping[str, LazyArray]
    model: Model | None = None
    notes: tuple[str, ...] = ()


def skipped(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The regular expressions of ``init.skip``; None, the default, is `SKIP`."""
    given = fields.get("skip")
    return SKIP if given is None else regexes("init.skip", given)


def accepted(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """``init.accept_changes``: fields that may mean something else than in the source."""
    given = fields.get("accept_changes") or ()
    given = (given,) if isinstance(given, str) else given
    if not isinstance(given, (tuple, list)) or not all(isinstance(name, str) for name in given):
        raise MmflaxError(
            f"init.accept_changes is {given!r}; expected names of fields, such as ('activation',)."
        )
    return tuple(given)


def sources(fields: Mapping[str, Any]) -> dict[str, Source]:
    """part, or "model" -> the source that the config names for it."""
    registry.check_fields("init", dict.fromkeys(fields), dict.fromkeys(KEYS))
    named = {}
    for part in (*PARTS, "model"):
        inner = fields if part == "model" else fields.get(part) or {}
        if part != "model":
            known = {"from": None, "family": None}
            registry.check_fields(f"init.{part}", dict.fromkeys(inner), known)
        if inner.get("from"):
            named[part] = Source(str(inner["from"]), inner.get("family") or None)
    return named


def opened(source: Source) -> Opened:
    """A workdir or a published checkpoint, with the modules that its weights belong to."""
    root = pathlib.Path(source.path).expanduser()
    if is_run(root):
        return Opened(_of_workdir(root), _model_of_workdir(root))
    checkpoint = inspect(source.path, family=source.family)
    family = checkpoint.model
    shapes, modules = traced(lambda key: family.init(key, family.zeros())["params"])
    processor, unread = None, ""
    try:
        processor = checkpoint.processor()
    except MmflaxError as error:  # the run may have another of its own
        unread = str(error)
    labels = _labels(checkpoint.original)
    found = Model(*_with_encoder(modules), processor, labels, unread)
    return Opened(_by_name(checkpoint.parameters(shapes)), found, checkpoint.tensors.notes)


def run_model(init: Any, processor: Processor) -> Model:
    """Of a run: `init` draws the parameters of the model, which reads what `processor` makes."""
    _, modules = traced(init)
    return Model(*_with_encoder(modules), processor, tuple(processor.answers))


def _with_encoder(modules: Mapping[str, Any]) -> tuple[dict[str, Any], ImageEncoder | None]:
    """The modules by name, and the image encoder, where it is one that keeps the contract."""
    named = _by_name(modules)
    encoder = named.get("image_encoder")
    if encoder is not None:
        encoder = encoder.clone(parent=None)
    return named, encoder if isinstance(encoder, ImageEncoder) else None


def parameters(source: str, family: str | None = None) -> Mapping[str, LazyArray]:
    """Every parameter of a workdir or a published checkpoint, by its path without `backbone/`."""
    root = pathlib.Path(source).expanduser()
    if is_run(root):
        return _of_workdir(root)
    return opened(Source(source, family)).parameters


def _by_name(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {path.removeprefix(BACKBONE): value for path, value in tree.items()}


def _labels(original: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes that a config names; none where it has transformers' placeholders."""
    given = original.get("id2label")
    labels = tuple(map(str, given.values())) if isinstance(given, Mapping) else ()
    return () if all(re.fullmatch(r"LABEL_\d+", label) for label in labels) else labels


def _model_of_workdir(root: pathlib.Path) -> Model:
    processor = Processor.load(root)
    model = Experiment(read_config(root)).task(processor).model
    batch = example_batch(processor, 1)
    return run_model(lambda key: model.init(key, batch, train=False)["params"], processor)


def _of_workdir(root: pathlib.Path) -> dict[str, LazyArray]:
    config = json.loads((root / "config.json").read_text(encoding="utf-8"))
    store = Store(str(root / "checkpoints"), **config.get("checkpoint", {}))
    step = store.best_or_newest()
    saved = checksums.read(store.path(step))["arrays"]
    prefix = "ema/" if any(name.startswith("ema/") for name in saved) else "params/"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    wanted = {
        name: jax.ShapeDtypeStruct(tuple(shape), jax.numpy.dtype(dtype), sharding=device)
        for name, (shape, dtype) in saved.items()
        if name.startswith(prefix)
    }

    @functools.cache
    def restored() -> dict[str, Any]:
        state, _, _ = store.restore(paths.nested(dict(wanted)), step, partial=True)
        return paths.leaves(state)

    return {
        name.removeprefix(prefix).removeprefix(BACKBONE): LazyArray(
            leaf.shape, functools.partial(lambda name: np.asarray(restored()[name]), name)
        )
        for name, leaf in wanted.items()
    }


def lookup(flat: Mapping[str, LazyArray], name: str) -> tuple[LazyArray | None, set[str]]:
    """A parameter, and the names it came from: loops and scans are read as each other."""
    for alias in aliases(name):
        if alias in flat:
            return flat[alias], {alias}
    before, middle, after = name.partition("/layers/")
    if middle:
        numbered = (f"{before}/layers_{i}/{after}" for i in itertools.count())
        if names := list(itertools.takewhile(flat.__contains__, numbered)):
            layers = [flat[one] for one in names]
            shape = (len(layers), *layers[0].shape)
            return LazyArray(shape, lambda: np.stack([x.read() for x in layers])), set(names)
    if match := re.search(r"/layers_(\d+)/", name):
        scanned, index = f"{name[: match.start()]}/layers/{name[match.end() :]}", int(match[1])
        if scanned in flat and index < flat[scanned].shape[0]:
            whole = flat[scanned]
            return LazyArray(whole.shape[1:], lambda: whole[index]), {scanned}
    return None, set()


def aliases(name: str) -> list[str]:
    """The name, and others that the same parameter may have."""
    aliases = [name]
    if name in _NAMES:
        aliases.append(_NAMES[name])
    if head := OBJECTIVE_HEAD.match(name):
        aliases.append(_PUBLISHED_HEAD + name[head.end() :])
    if name.startswith(_PUBLISHED_HEAD):
        rest = name.removeprefix(_PUBLISHED_HEAD)
        aliases += [f"objectives_{key}/words/{rest}" for key in _OBJECTIVES_WITH_WORDS]
    return aliases
