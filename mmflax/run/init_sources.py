"""The sources that ``config.init`` names: what they are, their parameters and their parts.

A source is the workdir of a run or a published checkpoint. Weights are read later, one by one.
"""

from __future__ import annotations

import functools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
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
from mmflax.run import base
from mmflax.run.adapters import adapters_of
from mmflax.run.build import Experiment, example_batch
from mmflax.run.former import is_run
from mmflax.run.init_fit import BACKBONE, fitted, lookup
from mmflax.run.init_parted import has_parted, parted
from mmflax.run.workdir import read_config

KEYS = ("from", "family", "skip", "accept_changes", *PARTS)
SKIP = (r"(^|/)(head|grounding)/",)


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

    def parted(self) -> Opened:
        """With the layers of a text encoder that reads the image as a fusion (`init_parted`)."""
        if self.model is None:
            return self
        parameters, modules = parted(self.parameters, self.model.modules)
        return self._replace(parameters=parameters, model=self.model._replace(modules=modules))


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


def is_new(fields: Mapping[str, Any]) -> Callable[[str], bool]:
    """Whether the config loads nothing for a parameter, by its path; what an objective of
    pretraining adds counts as new, since a checkpoint need not have it."""
    named, skip = sources(fields), skipped(fields)

    def new(path: str) -> bool:
        name = path.removeprefix(BACKBONE)
        return (
            (name.split("/")[0] not in named and "model" not in named)
            or any(re.search(pattern, path) for pattern in skip)
            or name.startswith("objectives_")
        )

    return new


def loaded(
    fields: Mapping[str, Any], shapes: Mapping[str, Any], model: Model
) -> dict[str, LazyArray]:
    """What the sources of a run give for these parameters, in the run's shapes.

    `mmflax.run.init_from.start`, which compared the rest before training, fits them likewise.

    Args:
      fields: the config's section `init`.
      shapes: path -> shape.
      model: the run's.
    """
    named = sources(fields)
    given_by = {source: opened_for(source, shapes) for source in dict.fromkeys(named.values())}
    values = {}
    for path, leaf in shapes.items():
        name = path.removeprefix(BACKBONE)
        source = named.get(name.split("/")[0], named.get("model"))
        assert source is not None, path
        given, _ = lookup(given_by[source].parameters, name)
        theirs = given_by[source].model
        found = given and fitted(
            name, given, tuple(leaf.shape), theirs and theirs.image_encoder, model.image_encoder
        )
        if not found:
            raise MmflaxError(
                f"{source} has no {path} of shape {list(leaf.shape)}, which the run was trained "
                "on; put the former files back."
            )
        values[path] = found[0]
    return values


def opened_for(source: Source, shapes: Iterable[str]) -> Opened:
    """A source under the names of a run with parameters of these paths."""
    one = opened(source)
    names = (path.removeprefix(BACKBONE) for path in shapes)
    return one.parted() if has_parted(names) else one


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


def _init_of_workdir(root: pathlib.Path) -> tuple[Callable[[jax.Array], Any], Processor]:
    """What draws the parameters of a run's model, and its processor."""
    processor = Processor.load(root)
    model = Experiment(read_config(root)).task(processor).model
    batch = example_batch(processor, 1)
    return lambda key: model.init(key, batch, train=False)["params"], processor


def _model_of_workdir(root: pathlib.Path) -> Model:
    return run_model(*_init_of_workdir(root))


def _with_base(root: pathlib.Path, trained: dict[str, LazyArray]) -> dict[str, LazyArray]:
    """All parameters of a run: with adapters, the base that they are merged into."""
    experiment = Experiment(read_config(root))
    if experiment.lora.rank is None:
        return trained
    fields = experiment.config.get("init") or {}
    init, processor = _init_of_workdir(root)
    adapters = adapters_of(experiment, init, is_new(fields))
    assert adapters is not None
    values = base.saved(root) or loaded(fields, adapters.frozen, run_model(init, processor))
    base.check(root, base.digest(values))
    return adapters.merge_lazily({**trained, **values})


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

    trained = {
        name.removeprefix(prefix): LazyArray(
            leaf.shape, functools.partial(lambda name: np.asarray(restored()[name]), name)
        )
        for name, leaf in wanted.items()
    }
    return _by_name(_with_base(root, trained))
