"""Every key that a config can have, from the dataclasses of its sections and from its builders.

A section with a ``name`` holds the keywords of the builder that the name points to (see
`mmflax.registry`). Keywords that the rest of the experiment decides, such as a vocabulary's size,
are no keys of a config.
"""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from typing import Any

from mmflax import registry
from mmflax.config import sections
from mmflax.errors import MmflaxError

Keywords = dict[str, inspect.Parameter]

TYPED = {
    "train": sections.TrainConfig,
    "data": sections.DataConfig,
    "evaluation": sections.EvaluationConfig,
    "checkpoint": sections.CheckpointConfig,
    "mesh": sections.MeshConfig,
    "lora": sections.LoraConfig,
    "recipe": sections.RecipeConfig,
    "plan.shapes": sections.PlanShapes,
}
REQUIRED = ("model", "task", "data", "processor", "optim", "train")
OPTIONAL_MAPPINGS = ("evaluation", "recipe", "plan", "plan.shapes")
OPTIONAL = ("seed", "mesh", "evaluation", "checkpoint", "augment", "init", "lora", "recipe", "plan")
# section: (package of its builders, keywords decided by the rest of the experiment)
NAMED = {
    "model.image_encoder": (
        "mmflax.models.encoders", ("image_size", "num_regions", "feature_dim"),
    ),
    "model.text_encoder": ("mmflax.models.encoders", ("vocab_size",)),
    "model.fusion": ("mmflax.models.fusion", ()),
    "task": (
        "mmflax.tasks",
        (
            "backbone", "num_answers", "answers", "question_types", "vocab_size", "max_length",
            "target_length", "image_tokens", "continuation", "pad_id", "unk_id", "cls_id",
            "sep_id", "mask_id",
        ),
    ),
    "data": (
        "mmflax.data.datasets",
        ("max_bad_fraction", "normalize_answers", "reads_regions", "held_out", "former_path"),
    ),
}  # fmt: skip
# section: (module, function, keywords decided by the rest of the experiment)
FUNCTIONS = {
    "processor": (
        "mmflax.data.processor", "Processor.learn",
        ("dataset", "published", "say", "answers", "question_types", "tokenizer",
         "reads_text", "reads_image", "fields"),
    ),
    # Less those of other optimizers.
    "optim": ("mmflax.training.optim", "build", ("params", "frozen")),
    "augment": ("mmflax.data.augment", "build", ()),
}  # fmt: skip


def keywords(section: str, config: Mapping[str, Any]) -> Keywords | None:
    """The keys of a section of this config; None where any key may stand (or nothing is known)."""
    if section == "":
        kinds = {"seed": int}
        return {key: _parameter(key, kinds.get(key, Any)) for key in (*REQUIRED, *OPTIONAL)}
    if section == "model":
        rate = _parameter("modality_dropout", float, 0.0)
        return {part: _parameter(part, Mapping) for part in sections.PARTS} | {rate.name: rate}
    if section == "plan":
        return {"shapes": _parameter("shapes", Mapping, None)}
    if section == "init":
        parts = {part: _parameter(part, Mapping, None) for part in sections.PARTS}
        return {
            "from": _parameter("source", str | None, None),
            "family": _parameter("family", str | None, None),
            "skip": _parameter("skip", tuple | None, None),
            "accept_changes": _parameter("accept_changes", tuple[str, ...], ()),
            **parts,
        }
    if section.removeprefix("init.") in sections.PARTS:
        return {
            "from": _parameter("source", str | None, None),
            "family": _parameter("family", str | None, None),
        }
    known: Keywords = {}
    if section in NAMED:
        package, decided = NAMED[section]
        name = at(config, section).get("name")
        try:
            built = registry.keywords_of(package, section, name or "")
        except (MmflaxError, ValueError):
            return None  # the check of the whole config names it
        known = {key: value for key, value in built.items() if key not in decided}
        known["name"] = _parameter("name", str)
    elif section in FUNCTIONS:
        module, function, decided = FUNCTIONS[section]
        builder_module: Any = importlib.import_module(module)
        builder = builder_module
        for attribute in function.split("."):
            builder = getattr(builder, attribute)
        known = {k: v for k, v in registry.keywords(builder).items() if k not in decided}
        if section == "optim":
            known = builder_module.optimizer_keywords(at(config, section).get("name", "adamw"))
        if section == "processor":
            known["from"] = _parameter("source", Any, None)
    elif section == "optim.schedule":
        optim: Any = importlib.import_module("mmflax.training.optim")
        schedule = at(config, section).get("name", "constant")
        return dict(optim.schedule_keywords(schedule))
    if section in TYPED:
        hints = typing.get_type_hints(TYPED[section])
        parameters = inspect.signature(TYPED[section]).parameters
        known |= {key: p.replace(annotation=hints[key]) for key, p in parameters.items()}
    return known or None


def check_sections(config: Any) -> None:
    """Raises unless a config has the sections that every run needs, and no other."""
    mappings = (*(f"model.{part}" for part in sections.PARTS), "optim.schedule", *OPTIONAL_MAPPINGS)
    for section in ("", *REQUIRED, *mappings):
        here = config
        for key in filter(None, section.split(".")):
            here = here.get(key, {})
        if not isinstance(here, Mapping):
            raise MmflaxError(f"{section or 'The config'} is {here!r}; expected keys with values.")
    registry.check_fields("config", dict.fromkeys(config), dict.fromkeys((*REQUIRED, *OPTIONAL)))
    missing = [key for key in REQUIRED if key not in config]
    if missing:
        raise MmflaxError(f"The config has no {', '.join(missing)}; add it.")
    known = dict.fromkeys((*sections.PARTS, "modality_dropout"))
    registry.check_fields("model", config["model"].keys(), known)
    absent = [part for part in sections.PARTS if part not in config["model"]]
    if absent:
        raise MmflaxError(f"The config has no model.{absent[0]}; add it.")


def at(config: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """The section ``a.b`` of a config, or an empty one."""
    here: Any = config
    for key in section.split("."):
        here = here.get(key) if isinstance(here, Mapping) else None
    return here if isinstance(here, Mapping) else {}


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> Any:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)
