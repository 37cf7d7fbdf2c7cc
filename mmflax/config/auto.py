"""``auto`` as a value: what is decided by the training data once they are open.

`mmflax.run.recipe` has the rules; a value given in the file or on the command line replaces them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmflax import registry
from mmflax.config import schema
from mmflax.errors import MmflaxError

AUTO = "auto"
_SIZES = ("width", "depth", "num_heads", "mlp_dim", "dropout_rate")
# section: the keys that may be ``auto``
KEYS: dict[str, tuple[str, ...]] = {
    "processor": ("image_size",),
    "model.image_encoder": (*_SIZES, "patch_size", "stem"),
    "model.text_encoder": _SIZES,
    "model.fusion": _SIZES,
    "task": ("embed_dim", "label_smoothing", "bag_of_words"),
    "task.decoder": _SIZES,
    "data": ("batch_size",),
    "evaluation": ("batch_size", "max_examples"),
    "train": ("steps", "log_every", "eval_every", "checkpoint_every", "patience"),
    "optim": ("weight_decay",),
    "optim.schedule": ("peak", "warmup_steps"),
    "augment": (
        "crop_scale", "flip", "randaugment_ops", "brightness", "contrast", "saturation", "hue",
        "erase_rate", "mask_rate",
    ),
}  # fmt: skip


def may_be(key: str) -> bool:
    """Whether the value of the key ``a.b`` may be ``auto``."""
    section, _, name = key.rpartition(".")
    return name in KEYS.get(section, ())


def undecided(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys whose value is ``auto`` and may be, in the order of ``KEYS``."""
    return tuple(
        f"{section}.{name}"
        for section, names in KEYS.items()
        for name in names
        if schema.at(config, section).get(name) == AUTO
    )


def filled(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The config with these values of ``a.b`` keys, whose sections are there."""
    changed: dict[str, Any] = copy.deepcopy(dict(config))
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        here: Any = schema.at(changed, section)
        here[name] = value
    return changed


def as_before(config: Mapping[str, Any], former: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what a former one has where this one says ``auto``, if it has a value.

    What the former says was decided by the data (``recipe.decided``) stays so.
    """
    values: dict[str, Any] = {}
    for key in undecided(config):
        section, _, name = key.rpartition(".")
        before = schema.at(former, section)
        if name in before and before[name] != AUTO:
            values[key] = before[name]
    if not values:
        return dict(config)
    decided = schema.at(former, "recipe.decided")
    recipe = dict(config.get("recipe") or {})
    recipe["decided"] = {key: value for key, value in decided.items() if key in values}
    return {**filled(config, values), "recipe": recipe}


def check(config: Mapping[str, Any]) -> None:
    """Raises for an ``auto`` that nothing decides.

    A key whose values are texts may have one that is called so.
    """
    for section in ("model", *schema.NAMED, *schema.FUNCTIONS, "optim.schedule", *schema.TYPED):
        named = [name for name, value in schema.at(config, section).items() if value == AUTO]
        known = schema.keywords(section, config) if named else None
        for name in named:
            if known and name in known:
                check_key(f"{section}.{name}", known[name].annotation)


def check_key(key: str, annotation: Any) -> None:
    """Raises if a key with values of this type, where it is known, is none that may be ``auto``."""
    allowed = None if annotation is None else registry.plain_types(annotation)
    if may_be(key) or allowed is None or str in allowed:
        return
    section = key.rpartition(".")[0]
    of, known = (f"of {section}", KEYS[section]) if section in KEYS else ("keys of", tuple(KEYS))
    raise MmflaxError(
        f"{key} is 'auto', but the data do not decide it: give a value (they decide {of} "
        f"{', '.join(known)})."
    )
