"""How the families of public checkpoints are fine-tuned: rates, heads, and what they are missing.

The rates of METER, ViLT, BridgeTower and LXMERT are those that their authors publish for these
tasks (the configs of these names say where); the others are a place to start.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

# The peak of what is new and large, such as a decoder or a text encoder, whatever the others have.
NEW_RATE = 2e-4
_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a family's fine-tuning has of its own.

    Attributes:
      peak: task -> peak of the learning rate; "" for the others.
      head: task -> how many times that rate a new head has; "" for the others.
      fusion: how many times that rate the fusion has.
      spared: regexes of what has the peak itself, also inside the fusion.
      layer_decay: of the encoders' layers; 1 leaves all the same rate.
      fields: others of `optim`.
      head_fields: task -> fields of the head, where sizes are shares of the fusion's width; ""
        for the others.
    """

    peak: Mapping[str, float]
    head: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"": 10.0})
    fusion: float = 1.0
    spared: tuple[str, ...] = ()
    layer_decay: float = 1.0
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    head_fields: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def of(self, what: str, task: str) -> Any:
        """The value of a table for this task."""
        table = getattr(self, what)
        return table.get(task, table.get("", {}))


_METER = dict(weight_decay=0.01, b2=0.98)
_LXMERT_HEAD: dict[str, dict[str, Any]] = {
    "": dict(form="lxmert"),
    "reasoning": dict(form="lxmert", hidden=2),
}
_REGIONS = Recipe({"": 5e-5}, {"": 1.0}, fields=dict(weight_decay=0.01), head_fields=_LXMERT_HEAD)
RECIPES = {
    "meter": Recipe(
        {"vqa": 5e-6, "entailment": 2e-6, "": 1e-5}, {"vqa": 50.0, "": 10.0}, 5.0, fields=_METER,
        head_fields={"reasoning": dict(hidden=2)},
    ),
    "vilt": Recipe(
        {"": 1e-4}, {"vqa": 10.0, "": 1.0}, fields=_METER, head_fields={"": dict(hidden=2)},
    ),
    "bridgetower": Recipe(
        {"reasoning": 5e-6, "entailment": 3e-6, "": 1e-5}, {"vqa": 50.0, "": 10.0}, 5.0,
        spared=(r"(^|/)fusion/type_embedding/",), fields=_METER,
        head_fields={"": dict(hidden=4), "reasoning": dict(hidden=3)},
    ),
    "lxmert": dataclasses.replace(_REGIONS, fields=dict(weight_decay=0.01, clip_norm=5.0)),
    "uniter": _REGIONS,
    "vilbert": _REGIONS,
    "visual_bert": _REGIONS,
    "blip": Recipe({"": 2e-5}, {"": 10.0}, fields=dict(weight_decay=0.05)),
}  # fmt: skip
# Encoders that were never trained together, or not with a fusion: a new one goes on top.
NEW_FUSION = Recipe(
    {"": 5e-5}, {"": 10.0}, 5.0, layer_decay=0.8, fields=dict(weight_decay=0.05, clip_norm=1.0)
)
# A run of mmflax, or a family of one's own.
OTHER = Recipe({"": 5e-5}, {"": 10.0}, fields=dict(weight_decay=0.05, clip_norm=1.0))
# A published pair of encoders that is trained on as a pair.
PAIR = Recipe({"": 1e-5}, {"": 1.0}, fields=dict(weight_decay=0.05, clip_norm=1.0))

# family -> (mean, std) of pixels, where a checkpoint comes without preprocessor_config.json.
PIXELS = {
    "clip": _CLIP, "meter": _CLIP, "bridgetower": _CLIP, "blip": _CLIP, "deit": _IMAGENET,
    "swin": _IMAGENET, "resnet": _IMAGENET, "vgg": _IMAGENET, "vit": _HALF, "vilt": _HALF,
    "siglip": _HALF, "align": _HALF,
}  # fmt: skip
# family -> whose tokenizer's files its checkpoint needs, where it comes without.
WORDS = {
    "meter": "roberta-base", "bridgetower": "roberta-base", "roberta": "roberta-base",
    "uniter": "bert-base-cased", "lxmert": "bert-base-uncased", "vilt": "bert-base-uncased",
    "vilbert": "bert-base-uncased", "visual_bert": "bert-base-uncased",
    "bert": "bert-base-uncased", "blip": "bert-base-uncased", "align": "bert-base-uncased",
    "clip": "openai/clip-vit-base-patch32", "siglip": "google/siglip-base-patch16-224",
}  # fmt: skip
# What reads which pictures, for messages.
READ_PIXELS = "METER, ViLT, BridgeTower, BLIP, CLIP, SigLIP, ALIGN, or a ViT beside a BERT"
