"""What a checkpoint decides of a config whose parts are ``auto``.

In `configs/finetune.py` the three parts of the model have ``name="auto"``. Before anything is
checked, `resolved` opens what ``config.init`` names, without reading weights, and writes the parts,
the task's fields, the preprocessing and the rates that belong to the checkpoint. What the config
says itself goes before all of it. The result has plain values only: it is what a workdir keeps, so
nothing that reads a workdir needs the checkpoint again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mmflax.config.sections import PARTS
from mmflax.run.finetune import inputs, tasks
from mmflax.run.finetune.parts import fusion_on_top, part_fields
from mmflax.run.finetune.recipes import NEW_RATE
from mmflax.run.finetune.sources import ENCODERS, NEW_TEXT, RUN, Choice, find, several
from mmflax.run.init_sources import sources
from mmflax.training.optim import optimizer_keywords

AUTO = "auto"


def asks(config: Mapping[str, Any]) -> bool:
    """Whether a config leaves a part of the model to the checkpoint."""
    model = config.get("model")
    parts = [model.get(part) for part in PARTS] if isinstance(model, Mapping) else []
    return any(isinstance(part, Mapping) and part.get("name") == AUTO for part in parts)


def resolved(
    config: Mapping[str, Any],
    former: Mapping[str, Any] | None = None,
    say: Callable[[str], object] | None = None,
    *,
    accelerated: bool | None = None,
    new_fusion: bool = False,
) -> dict[str, Any]:
    """The config with what the checkpoint decides; another config is returned as it is.

    Args:
      config: of the run.
      former: the run's own config, as its workdir has it: what was decided stays so.
      say: is told, in lines, what was decided.
      accelerated: whether a GPU or TPU trains, which computes in bfloat16; None looks.
      new_fusion: start the fusion at random, whatever the checkpoint has, so that kinds of fusion
        are compared on equal terms.

    Raises:
      MmflaxError: there is no source, it lacks what the task needs, or it does not fit; in one
        sentence, before data are read.
    """
    if not asks(config):
        return dict(config)
    if former is not None:
        return _as_before(config, former)
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    if accelerated is None:
        accelerated = jax.default_backend() != "cpu"
    choice = Choice(changed, find(changed, new_fusion), "bfloat16" if accelerated else None)
    _write_model(choice)
    if new_fusion and "fusion" not in choice.new:
        choice.new.append("fusion")
    changed["task"] = _under(tasks.fields(choice), changed["task"])
    _write_init(choice)
    changed["processor"] = inputs.fields(choice, changed.get("processor") or {})
    _write_optim(choice)
    if say is not None:
        for line in _lines(choice):
            say(line)
    return changed


def _as_before(config: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the former has where this one leaves it open."""

    def merged(old: Any, new: Any) -> Any:
        if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
            return old if new in (AUTO, "") else new
        opened = {key: value for key, value in new.items() if key in old or value not in (AUTO, "")}
        return {**old, **{key: merged(old.get(key), value) for key, value in opened.items()}}

    sections = ("model", "task", "processor", "optim", "init")
    whole = {key: merged(former.get(key) or {}, config.get(key) or {}) for key in sections}
    if several(whole["init"].get("from")):
        whole["init"].pop("from")
    return {**config, **whole}


def _write_model(choice: Choice) -> None:
    model = choice.config["model"]
    for part in PARTS:
        given = dict(model.get(part) or {})
        asked = given.get("name") == AUTO
        if asked:
            given.pop("name")
        if part not in choice.found:
            choice.new.append(part)
            if not asked:
                continue
        fields = _part(choice, part)
        if not asked and given.get("name") != fields["name"]:
            choice.new.append(part)  # another one, by the config's own choice
            continue
        if choice.dtype is not None:
            fields["dtype"] = choice.dtype
        model[part] = {**fields, **given}


def _part(choice: Choice, part: str) -> dict[str, Any]:
    """The section of a part, of its source or a new one."""
    one = choice.found.get(part)
    if one is not None:
        module = one.modules[part]
        if one.family == RUN:
            fields = dict(one.config["model"][part])
        else:
            fields = part_fields(part, module)
        if part == "text_encoder":
            fields.setdefault("max_length", module.max_length)
        if part == "fusion" and choice.two_images and one.has("fusion/type_embedding"):
            fields["num_types"] = max(3, module.num_types)
        return fields
    if choice.of_images_alone:  # parts that no loss reaches, as small as they can be
        least = dict(width=choice.text_sizes.num_heads, depth=0, num_heads=1)
        return dict(name="bert" if part == "text_encoder" else "concat", **least)
    if part == "text_encoder":
        choice.notes.append(
            f"{choice.image} reads no texts: a small text encoder learns them from your data "
            "alone; a published one knows more, as in --config.init.from="
            f"{choice.image},google-bert/bert-base-uncased"
        )
        return dict(NEW_TEXT)
    if choice.is_pair:  # two encoders that meet in their embeddings alone
        return dict(name="concat", width=choice.text_sizes.width, depth=0, num_heads=1)
    fields = fusion_on_top(choice.encoder, choice.text_sizes)
    return {**fields, "num_types": 3} if choice.two_images else fields


def _write_init(choice: Choice) -> None:
    """What is new is skipped, where the whole model has a source."""
    init = choice.config["init"]
    whole = sources(init).get("model")
    if whole is None:
        return
    new = [*tasks.new_modules(choice), *choice.new]
    if not choice.builds_fusion:
        new = [name for name in new if name != "fusion"]
    if set(new) - {"head"}:
        given = init.get("skip") or ()
        given = (given,) if isinstance(given, str) else tuple(given)
        names = "|".join(dict.fromkeys(["head", "grounding", *new]))
        init["skip"] = (*given, rf"^(backbone/)?({names})/")


def _write_optim(choice: Choice) -> None:
    recipe, optim = choice.recipe, choice.config["optim"]
    peak = float(recipe.of("peak", choice.task))
    rates: list[tuple[str, float]] = []
    if "text_encoder" in choice.new:
        rates.append((r"(^|/)text_encoder/", round(NEW_RATE / peak, 3)))
    if choice.builds_fusion:
        rates += [(pattern, 1.0) for pattern in recipe.spared]
        rates += [(r"(^|/)fusion/", recipe.fusion)] if recipe.fusion != 1 else []
    rates += tasks.rates(choice, peak, float(recipe.of("head", choice.task)))
    values: dict[str, Any] = dict(recipe.fields)
    if rates:
        values["lr_multipliers"] = tuple(rates)
    if recipe.layer_decay != 1:
        loaded = [part for part in ENCODERS if part not in choice.new]
        values["layer_decay"] = tuple((f"(^|/){part}/", recipe.layer_decay) for part in loaded)
    known = optimizer_keywords(optim.get("name", "adamw"))
    values = {key: value for key, value in values.items() if key in known}
    schedule = {"peak": peak, **dict(optim.get("schedule") or {})}
    choice.config["optim"] = {**values, **optim, "schedule": schedule}


def _lines(choice: Choice) -> list[str]:
    """What was decided, for people."""
    config, lines = choice.config, []
    for part in PARTS if choice.builds_fusion else ENCODERS:
        fields = config["model"][part]
        sizes = [str(fields[key]) for key in ("depth", "width") if fields.get(key)]
        one = choice.found.get(part)
        origin = "new" if one is None or part in choice.new else f"{one.family}, {one}"
        lines.append(f"{part}: {fields['name']} {'x'.join(sizes)} ({origin})".replace("  ", " "))
    if new := tasks.new_modules(choice):
        lines.append(f"new: {', '.join(new)}")
    lines.append(inputs.line(choice))
    optim, train = config["optim"], config["train"]
    epochs = train.get("epochs")
    length = f"{epochs} epochs" if epochs else f"{train.get('steps')} steps"
    rate = [f"rate {optim['schedule']['peak']:g}"]
    rate += [f"x{times:g} in {pattern}" for pattern, times in optim.get("lr_multipliers", ())]
    if decay := optim.get("layer_decay"):
        value = decay if isinstance(decay, float) else decay[0][1]
        rate.append(f"x{value:g} for each layer below the top of an encoder")
    lines.append(f"batch {config['data'].get('batch_size')}, {length}, {', '.join(rate)}")
    return lines + [f"note: {note}" for note in choice.notes]


def _under(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with those that are given in their places, inside of mappings too."""
    merged = dict(fields)
    for key, value in given.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = {**inner, **value}
        else:
            merged[key] = value
    return merged
