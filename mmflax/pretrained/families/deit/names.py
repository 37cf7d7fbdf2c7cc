"""Names of DeiT's checkpoints (transformers' DeiTModel and its heads): ViT's with another token."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.vit.names import VIT, backbone, encoder_fields, pooler_fields
from mmflax.pretrained.rules import Table

MODEL_TYPES = ("deit",)
KEYS = {"deit": VIT}


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    teacher = "distillation_classifier.weight" in names
    return dict(
        name="vit",
        image_encoder=encoder_fields(config, distillation_token=True),
        labels=configs.count_labels(config) if teacher or "classifier.weight" in names else 0,
        teacher=teacher,
        **pooler_fields(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a DeiT checkpoint."""
    teacher = "distillation_classifier.weight" in names
    return Table(
        (
            *backbone(names, "deit."),
            *rows.dense("cls_classifier" if teacher else "classifier", "head"),
            *rows.dense("distillation_classifier", "distillation_head"),
        ),
        unused=(rows.MASK_TOKEN,),
    )
