"""Whether weights mean the same in a run as where they come from.

Two models whose parameters have the same shapes may compute different functions: another
activation, epsilon, number of heads, place of the norms, offset of the positions. So the modules
themselves are compared, every field with its default, through nested configs. A field counts
unless `HARMLESS` or `SHAPES` says why it need not, so no field of a new module is forgotten.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from mmflax.config.sections import PARTS
from mmflax.errors import MmflaxError

# Field, or class and field, that does not change what loaded weights compute -> why.
HARMLESS = {
    "parent": "flax's own",
    "name": "flax's own",
    "dtype": "the precision of computation",
    "param_dtype": "the precision of parameters",
    "dropout_rate": "training only",
    "attention_dropout_rate": "training only",
    "drop_path_rate": "training only",
    "remat": "what the backward pass computes again",
    "scan_layers": "how layers are compiled; parameters are moved between the forms",
    "attention_impl": "which kernel computes the same attention",
    "qk_init": "initialization only",
    "any_size": "which image sizes are accepted; one that does not fit is an error",
    "crop": "which image sizes are accepted; one that does not fit is an error",
    "ImageEncoderBase.pool": "advice to a head, which has a field of its own",
    "pad_token": "follows from position_offset and the run's tokenizer",
    "MLMHead.vocab_size": "said by the shape of its bias",
}
# What the shapes of parameters say, which are compared first: whatever differs here was fitted,
# and the table of the start says how.
SHAPES = {
    "image_size": "positions are resized to the run's grid",
    "max_length": "positions are cut to the run's length",
    "vocab_size": "rows of the word table",
    "width": "columns of every kernel",
    "mlp_dim": "columns of the MLP's kernels; None is 4 * width",
    "num_token_types": "rows of a table of types, which grows by copies",
    "num_types": "rows of a table of types, which grows by copies",
    "num_positions": "rows of a table of positions",
    "num_regions": "how many regions the run's examples have",
    "feature_dim": "rows of a projection",
    "inner_width": "columns of the connections' kernels",
    "attention_dim": "columns of the attention's kernels",
    "image_width": "columns of every kernel",
    "image_mlp_dim": "columns of the MLP's kernels",
    "num_answers": "columns of the last kernel",
    "hidden_dim": "columns of the first kernel",
    "embed_dim": "columns of the projections",
}
# Fields of which None means the value of another -> what it means.
NONE: dict[str, Callable[[Any], Any]] = {
    "end_token": lambda text: text.vocab_size - 1,  # the highest id
    "bridge_epsilon": lambda fusion: fusion.layer.epsilon,
    "image_heads": lambda fusion: fusion.layer.num_heads,
    "inner_heads": lambda fusion: fusion.layer.num_heads,
    "image_activation": lambda fusion: fusion.layer.activation,
    "image_depths": lambda fusion: (1,) * fusion.stack.depth,
    "text_depths": lambda fusion: (1,) * fusion.stack.depth,
}
# Fields whose number only starts a parameter; None means that there is no such parameter.
STARTS = ("layer_scale",)


class Difference(NamedTuple):
    """A field that changes what a part computes.

    Attributes:
      part: the module's path in the run, without `backbone/`; "processor" for what makes a batch.
      field: its name, after a dot where it is inside a nested config that has no flat name.
      theirs: the value in the source.
      ours: the value in the run.
      write: what to write after `--config.` to have theirs, or None where no key sets it.
    """

    part: str
    field: str
    theirs: Any
    ours: Any
    write: str | None = None

    def __str__(self) -> str:
        return f"{self.part}.{self.field} was {self.theirs!r} and is {self.ours!r} in the run"

    def describe(self, source: object) -> str:
        text = f"{self.part}.{self.field} is {self.theirs!r} in {source} and {self.ours!r} here"
        return text if self.write is None else f"{text} (write --config.{self.write})"


def units(modules: Mapping[str, Any]) -> dict[str, Any]:
    """Of the modules by path those that are compared whole: the parts, and others of
    `mmflax.models` that lie in no other; layers are said by the fields of what they lie in."""
    found: dict[str, Any] = {}
    for path in sorted(modules):
        inside = any(path.startswith(f"{other}/") for other in found)
        ours = type(modules[path]).__module__.startswith("mmflax.models.")
        if path in PARTS or (path not in ("", "backbone") and ours and not inside):
            found[path] = modules[path]
    return found


def module_differences(part: str, theirs: Any, ours: Any) -> list[Difference]:
    """What differs between two modules that hold the same parameters.

    Args:
      part: the run's path of the module.
      theirs: the source's module.
      ours: the run's.
    """
    if type(theirs) is not type(ours):
        names = (_builder(theirs), _builder(ours))
        if names[0] is None or names[0] == names[1]:
            names = (type(theirs).__name__, type(ours).__name__)
            return [Difference(part, "name", *names)]
        return [Difference(part, "name", *names, f"model.{part}.name={names[0]}")]
    keys = _keys(part, ours)
    found = []
    for name, a, b in _fields(theirs, ours):
        key = keys.get(name.split(".")[-1])
        found.append(Difference(part, name, a, b, key and f"{key}={_literal(a)}"))
    return found


def _fields(theirs: Any, ours: Any) -> Iterator[tuple[str, Any, Any]]:
    """(name, their value, our value) of every field that counts and differs."""
    flat = {field.name for field in _flat(type(ours))}
    for name in (field.name for field in dataclasses.fields(ours)):
        if not counts(type(ours), name) or getattr(theirs, name) is getattr(ours, name):
            continue
        a, b = meaning(theirs, name), meaning(ours, name)
        if _is_config(a) and type(a) is type(b):
            inner = "" if name in flat else f"{name}."
            yield from ((inner + below, x, y) for below, x, y in _fields(a, b))
        elif a != b and not (name in STARTS and None not in (a, b)):
            yield name, a, b


def counts(cls: type, name: str) -> bool:
    """Whether a field of a module or config changes what it computes from loaded weights."""
    known = HARMLESS | SHAPES
    return name not in known and not any(f"{c.__name__}.{name}" in known for c in cls.__mro__)


def meaning(owner: Any, name: str) -> Any:
    """The value of a field, where several values mean the same as one of them."""
    value = getattr(owner, name)
    if value is None and name in NONE:
        return NONE[name](owner)
    return tuple(value) if isinstance(value, list) else value


def _flat(cls: type) -> list[dataclasses.Field]:
    """The fields whose own fields are keywords of the builder (`registry.flat`)."""
    return [field for field in dataclasses.fields(cls) if "flat" in field.metadata]


def _is_config(value: Any) -> bool:
    """Whether it has fields of its own: a config, or a module inside another."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _builder(module: Any) -> str | None:
    """The name in a config of an encoder's or fusion's class."""
    cls = type(module)
    package, _, name = cls.__module__.rpartition(".")
    if package in ("mmflax.models.encoders", "mmflax.models.fusion"):
        return name
    return None


def _keys(part: str, module: Any) -> dict[str, str]:
    """field -> the config's key that sets it."""
    section, _, rest = part.partition("/")
    if section in ("image_encoder", "text_encoder", "fusion") and not rest:
        section = f"model.{section}"
    elif section == "head":
        section = "task.head"
    elif section.startswith("objectives_"):
        section = f"task.objectives.{section.removeprefix('objectives_')}"
        return {"epsilon": f"{section}.epsilon"}
    else:
        return {}
    names = set(inspect.signature(type(module)).parameters)
    for field in _flat(type(module)):
        spec = field.metadata["flat"]
        names |= {f.name for f in dataclasses.fields(spec.cls)} - set(spec.without)
    return {name: f"{section}.{name}" for name in names}


def _literal(value: Any) -> str:
    """As the command line takes it."""
    return value if isinstance(value, str) else repr(value).replace(" ", "")


def refuse(found: Mapping[Any, Iterable[Difference]], accepted: Iterable[str]) -> list[str]:
    """Lines on the differences that are accepted; raises MmflaxError for the others.

    Args:
      found: source -> what differs from it.
      accepted: `init.accept_changes`: fields, or parts with fields, as `image_encoder.activation`.
    """
    allowed = set(accepted)
    lines, refused, names = [], [], []
    for source, differences in found.items():
        for one in differences:
            if {one.field, f"{one.part}.{one.field}"} & allowed:
                lines.append(f"{one.describe(source)}, as init.accept_changes allows")
            else:
                refused.append(one.describe(source))
                names.append(one.field)
    if refused:
        everything = ",".join(dict.fromkeys([*allowed, *names]))
        raise MmflaxError(
            "The weights would compute something else in this run: "
            f"{'; '.join(refused)}. To start from them all the same, write "
            f"--config.init.accept_changes={everything}"
        )
    return lines
