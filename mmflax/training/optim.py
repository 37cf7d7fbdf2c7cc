"""Optimizers and schedules from plain fields, on optax.

Weight decay is decoupled (Loshchilov & Hutter 2019) and multiplied by the learning rate for every
optimizer here, Adafactor and SGD included.
"""

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmflax import paths, registry
from mmflax.errors import MmflaxError, option
from mmflax.training.layer_decay import layer_factors
from mmflax.training.muon import scale_by_muon_and_adam

Schedule = Callable[[Any], Any]
NO_DECAY = (r"(^|/)(bias|scale|mean|var)$",)


def build(
    params: Any,
    *,
    schedule: Mapping[str, Any],
    name: str = "adamw",
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = NO_DECAY,
    clip_norm: float | None = None,
    lr_multipliers: Sequence[tuple[str, float]] = (),
    layer_decay: float | Sequence[tuple[str, float]] | None = None,
    freeze: Sequence[str] = (),
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    momentum: float = 0.9,
    muon_momentum: float = 0.95,
    frozen: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[optax.GradientTransformation, Schedule]:
    """Optimizer and schedule for these (abstract) parameters.

    Args:
      params: tree of arrays or shapes; path regexes are searched in its paths ``a/b/c``.
      schedule: ``{"name": ..., **fields}`` of ``build_schedule``.
      name: adamw, lamb (You et al. 2020), adafactor (Shazeer & Stern 2018, no momentum), sgd, or
        muon, with AdamW for what is no matrix inside the network (see `muon`).
      weight_decay: per step, times the learning rate.
      no_decay: path regexes of parameters without weight decay.
      clip_norm: largest global norm of the trained parameters' gradients.
      lr_multipliers: (path regex, factor); the first that matches a parameter counts.
      layer_decay: times the rate for each layer below the head (see `layer_decay`), of all layers
        or as (path regex, decay) pairs; None leaves all the same. It multiplies `lr_multipliers`.
      freeze: path regexes of parameters that never change and have no moments, such as
        ``image_encoder/`` for that part.
      b1: decay of the first moment, of adamw, lamb and muon's AdamW.
      b2: decay of the second moment, of the same.
      eps: of the same.
      momentum: of sgd.
      muon_momentum: of muon's matrices.
      frozen: path -> shape of parameters that the model has beside these, whose layers
        `layer_decay` counts.

    Raises:
      MmflaxError: unknown name, or a regex that decides nothing.
    """
    shapes = paths.leaves(params)
    names = list(shapes)
    rate = build_schedule(**schedule)
    factors = _first_match(names, lr_multipliers, "lr_multipliers")
    if layer_decay is not None:
        for path, factor in layer_factors({**frozen, **shapes}, layer_decay).items():
            factors[path] = factors.get(path, 1.0) * factor
    held = set(_first_match(names, [(pattern, True) for pattern in freeze], "freeze"))
    if names and len(held) == len(names):
        raise MmflaxError(f"freeze={tuple(freeze)} freezes every parameter: nothing would train")
    if name not in _OPTIMIZERS:
        raise MmflaxError(
            f"optim.name is the unknown optimizer {name!r}: known are {', '.join(_OPTIMIZERS)}"
            f"{registry.nearest(name, _OPTIMIZERS)}"
        )

    decays = dict(b1=b1, b2=b2, momentum=momentum, muon_momentum=muon_momentum)
    _check_numbers(weight_decay, clip_norm, eps, **decays)
    parts: list[Any] = []
    if clip_norm is not None:
        parts.append(optax.clip_by_global_norm(clip_norm))
    before, after = _transforms(name, b1, b2, eps, momentum)
    if name == "muon":
        before = [scale_by_muon_and_adam(shapes, muon_momentum, b1, b2, eps)]
    parts += before
    if weight_decay:
        spared = _first_match(names, [(pattern, True) for pattern in no_decay], "no_decay")
        decayed = _map_paths(lambda path, _: path not in spared)
        parts.append(optax.add_decayed_weights(weight_decay, mask=decayed))
    parts += after
    parts.append(optax.scale_by_learning_rate(rate))
    if factors:
        scale = _map_paths(
            lambda path, update: update * jnp.asarray(factors.get(path, 1.0), update.dtype)
        )
        parts.append(optax.stateless(lambda updates, _: scale(updates)))
    tx = optax.chain(*parts)
    if held:
        tx = optax.partition(
            {"train": tx, "freeze": optax.set_to_zero()},
            _map_paths(lambda path, _: "freeze" if path in held else "train"),
        )
    init, update = _standard_promotion(tx.init), _standard_promotion(tx.update)
    return optax.GradientTransformation(init, update), rate


def _check_numbers(
    weight_decay: float, clip_norm: float | None, eps: float, **decays: float
) -> None:
    """Raises for numbers with which no optimizer learns."""
    if clip_norm is not None and clip_norm <= 0:
        raise MmflaxError(
            f"optim.clip_norm is {clip_norm}; expected a norm above 0, or no clipping: "
            f"{option('optim.clip_norm', None)}."
        )
    for name, value in decays.items():
        if not 0 <= value < 1:
            raise MmflaxError(f"optim.{name} is {value}; expected at least 0 and below 1.")
    if weight_decay < 0:
        raise MmflaxError(f"optim.weight_decay is {weight_decay}; expected at least 0.")
    if eps <= 0:
        raise MmflaxError(f"optim.eps is {eps}; expected a number above 0.")


def build_schedule(name: str = "constant", **fields: Any) -> Schedule:
    """Update count -> learning rate. Names: constant, warmup_cosine, warmup_linear, rsqrt_cooldown.

    ``warmup_fraction`` (0 to 1, of ``total_steps``) may stand in place of ``warmup_steps``.

    Raises:
      MmflaxError: unknown name or field, or steps that leave nothing to decay.
    """
    check_schedule({"name": name, **fields})
    fraction = fields.pop("warmup_fraction", None)
    if fraction is not None:
        fields["warmup_steps"] = round(fraction * fields["total_steps"])
    missing = [
        key
        for key, parameter in registry.keywords(_SCHEDULES[name]).items()
        if parameter.default is parameter.empty and key not in fields
    ]
    if missing:
        raise MmflaxError(
            f"optim.schedule ({name}) needs {', '.join(missing)}; give "
            f"--config.optim.schedule.{missing[0]}=VALUE."
        )
    schedule: Schedule = _standard_promotion(_SCHEDULES[name](**fields))
    return schedule


def schedule_keywords(name: str) -> dict[str, inspect.Parameter]:
    """Every key of a schedule's fields."""
    if name not in _SCHEDULES:
        raise MmflaxError(
            f"optim.schedule.name is the unknown schedule {name!r}"
            f"{registry.nearest(name, _SCHEDULES)}; known are {', '.join(_SCHEDULES)}."
        )
    own = inspect.signature(build_schedule).parameters["name"].replace(annotation=str)
    fraction = own.replace(name="warmup_fraction", annotation=float | None, default=None)
    return {"name": own, **registry.keywords(_SCHEDULES[name]), fraction.name: fraction}


def optimizer_keywords(name: str) -> dict[str, inspect.Parameter]:
    """Every key of an optimizer's fields; those of all for a name that is not known."""
    known = {k: v for k, v in registry.keywords(build).items() if k not in ("params", "frozen")}
    others = {field for fields in _OPTIMIZERS.values() for field in fields}
    own = _OPTIMIZERS.get(name, tuple(others))
    return {k: v for k, v in known.items() if k not in others or k in own}


def check_schedule(fields: Mapping[str, Any]) -> None:
    """Raises for keys, types and values that are wrong whatever the steps of the run."""
    registry.check_fields(
        "optim.schedule", fields, schedule_keywords(fields.get("name", "constant"))
    )
    for key, value in fields.items():
        if isinstance(value, (int, float)) and value < 0:
            raise MmflaxError(f"optim.schedule.{key} is {value}; expected at least 0.")
    fraction = fields.get("warmup_fraction")
    if fraction is not None and (fraction >= 1 or "warmup_steps" in fields):
        raise MmflaxError(
            f"optim.schedule.warmup_fraction is {fraction}; expected a fraction of the run below "
            "1, and no warmup_steps beside it."
        )


def _constant(*, peak: float, warmup_steps: int = 0, total_steps: int | None = None) -> Schedule:
    """``peak`` after a linear warm-up from 0."""
    constant: Schedule = optax.constant_schedule(peak)
    linear: Schedule = optax.linear_schedule(0.0, peak, warmup_steps)
    return linear if warmup_steps else constant


def _warmup_cosine(
    *, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0
) -> Schedule:
    """Linear to ``peak``, then half a cosine to ``end`` at ``total_steps``."""
    _check_steps(warmup_steps, total_steps)
    decay = optax.cosine_decay_schedule(peak, total_steps - warmup_steps, end / peak)
    return _warm(peak, warmup_steps, decay)


def _warmup_linear(
    *, peak: float, warmup_steps: int, total_steps: int, end: float = 0.0
) -> Schedule:
    """Linear to ``peak``, then linear to ``end`` at ``total_steps``."""
    _check_steps(warmup_steps, total_steps)
    return _warm(peak, warmup_steps, optax.linear_schedule(peak, end, total_steps - warmup_steps))


def _rsqrt_cooldown(
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    cooldown_steps: int = 0,
    timescale: int | None = None,
) -> Schedule:
    """Reciprocal square root with linear cooldown to 0 (Zhai et al. 2022, section 3.5).

    After warm-up, ``peak * sqrt(s / (s + steps since warm-up))``; ``s`` is ``timescale``, by
    default the warm-up. The last ``cooldown_steps`` also fall linearly to 0.
    """
    _check_steps(warmup_steps + cooldown_steps, total_steps)
    scale = float(timescale or max(warmup_steps, 1))

    def decay(count: Any) -> jax.Array:
        count = jnp.asarray(count, jnp.float32)
        value = peak * jnp.sqrt(scale / (scale + count))
        if cooldown_steps:
            left = (total_steps - warmup_steps - count) / cooldown_steps
            value = value * jnp.clip(left, 0.0, 1.0)
        return value

    return _warm(peak, warmup_steps, decay)


_SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": _constant,
    "warmup_cosine": _warmup_cosine,
    "warmup_linear": _warmup_linear,
    "rsqrt_cooldown": _rsqrt_cooldown,
}
# optimizer: the fields that are its own
_OPTIMIZERS = {
    "adamw": ("b1", "b2", "eps"),
    "lamb": ("b1", "b2", "eps"),
    "adafactor": (),
    "sgd": ("momentum",),
    "muon": ("muon_momentum", "b1", "b2", "eps"),
}


def _transforms(
    name: str, b1: float, b2: float, eps: float, momentum: float
) -> tuple[list[Any], list[Any]]:
    """An optimizer's transforms before and after weight decay is added."""
    if name == "adafactor":
        return [
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        ], []
    if name == "sgd":
        return [optax.trace(momentum)] if momentum else [], []
    adam = [optax.scale_by_adam(b1, b2, eps)]
    return adam, [optax.scale_by_trust_ratio()] if name == "lamb" else []


def _standard_promotion(function: Callable[..., Any]) -> Callable[..., Any]:
    """optax mixes ints and floats, which JAX's strict promotion rules refuse."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def _warm(peak: float, steps: int, then: Schedule) -> Schedule:
    if not steps:
        return then
    joined: Schedule = optax.join_schedules(
        [optax.linear_schedule(0.0, peak, steps), then], [steps]
    )
    return joined


def _check_steps(used: int, total: int) -> None:
    if not 0 <= used < total:
        raise MmflaxError(
            f"schedule: warm-up and cooldown take {used} of {total} steps; they must be fewer"
        )


def _map_paths(function: Callable[[str, Any], Any]) -> Callable[[Any], Any]:
    """``tree -> tree`` of ``function(path, leaf)``."""
    return lambda tree: paths.map_leaves(function, tree)


def patterns(multipliers: Any) -> list[Any]:
    """The path patterns of ``lr_multipliers``; raises unless these are pairs with a factor."""
    for rule in multipliers if isinstance(multipliers, (list, tuple)) else (multipliers,):
        pair = isinstance(rule, (list, tuple)) and len(rule) == 2
        factor = rule[1] if pair else None
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not factor >= 0:
            example = option("optim.lr_multipliers", (("^backbone/text_encoder/", 0.1),))
            raise MmflaxError(
                f"optim.lr_multipliers has {rule!r}; expected (path regex, factor) pairs with "
                f"factors of at least 0, as in {example}."
            )
    return [rule[0] for rule in multipliers]


def _first_match(
    names: Sequence[str], rules: Sequence[tuple[str, Any]], field: str
) -> dict[str, Any]:
    """path -> value of the first rule that matches it; a rule without a parameter is an error."""
    values: dict[str, Any] = {}
    idle = {pattern for pattern, _ in rules}
    for path in names:
        for pattern, value in rules:
            if re.search(pattern, path):
                values[path] = value
                idle.discard(pattern)
                break
    if idle:
        example = f" (paths look like {names[0]!r})" if names else ""
        left = tuple(rule for rule in rules if rule[0] not in idle)
        value = left if field == "lr_multipliers" else tuple(pattern for pattern, _ in left)
        raise MmflaxError(
            f"optim.{field}: {', '.join(map(repr, sorted(idle)))} decides no parameter{example}; "
            f"correct the regex or remove it, as in {option(f'optim.{field}', value)}"
        )
    return values
