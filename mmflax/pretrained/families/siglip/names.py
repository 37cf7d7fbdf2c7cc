"""Names of SigLIP's checkpoints (transformers' SiglipModel and its parts), also SigLIP 2's."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.clip.names import (
    TEXT_RULES,
    VISION_RULES,
    one_side,
    text_fields,
    vision_fields,
)
from mmflax.pretrained.rules import FIRST, Rule, Table, under

MODEL_TYPES = ("siglip", "siglip_text_model", "siglip_vision_model")

# What transformers' configs take for keys that a config.json leaves out.
BOTH = dict(
    hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
    hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
)  # fmt: skip
VISION = dict(BOTH, image_size=224, patch_size=16)
TEXT = dict(BOTH, vocab_size=32000, max_position_embeddings=64)

POOLER = (
    Rule("probe", "probe"),
    *rows.joined_attention("attention", "attention"),
    *rows.norm("layernorm", "mlp_norm"),
    *rows.dense("mlp.fc1", "mlp/fc1"),
    *rows.dense("mlp.fc2", "mlp/fc2"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(name="siglip")
    if configs.has(names, "patch_embedding.weight"):
        fields["image_encoder"] = vision_fields(
            one_side(config, "vision", VISION), cls_token=False, pool="map"
        )
        fields["pooler"] = configs.has(names, "head.probe")
    if configs.has(names, "token_embedding.weight"):
        text = one_side(config, "text", TEXT)
        fields["text_encoder"] = text_fields(text)
        fields["projection"] = text.get("projection_size") or text["hidden_size"]
    return fields | dict(labels=configs.classifier_labels(config, names))


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a SigLIP checkpoint."""
    vision, text = configs.prefix(names, "vision_model."), configs.prefix(names, "text_model.")
    return Table(
        rules=(
            *under(vision, "image_encoder/", VISION_RULES),
            *under(f"{vision}head.", "image_head/", POOLER),
            *under(text, "text_encoder/", TEXT_RULES),
            *rows.dense(f"{text}head", "text_projection"),
            Rule("logit_scale", "logit_scale", FIRST),
            Rule("logit_bias", "logit_bias", FIRST),
            *rows.dense("classifier", "head"),
        ),
        unused=(rows.POSITION_IDS,),
    )
