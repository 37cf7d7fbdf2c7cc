"""Names of SigLIP's checkpoints (transformers' SiglipModel and its parts), also SigLIP 2's."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import count_labels, dense, has, norm
from mmflax.pretrained.families.clip.names import (
    TEXT_RULES,
    VISION_RULES,
    joined_attention,
    prefix,
    side,
    text_fields,
    vision_fields,
)
from mmflax.pretrained.rules import SCALAR, Rule, Table, under

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
    *joined_attention("attention", "attention"),
    *norm("layernorm", "mlp_norm"),
    *dense("mlp.fc1", "mlp/fc1"),
    *dense("mlp.fc2", "mlp/fc2"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    found: dict[str, Any] = dict(name="siglip")
    if has(names, "patch_embedding.weight"):
        found["image_encoder"] = vision_fields(
            side(config, "vision", VISION), cls_token=False, pool="map"
        )
        found["pooler"] = has(names, "head.probe")
    if has(names, "token_embedding.weight"):
        text = side(config, "text", TEXT)
        found["text_encoder"] = text_fields(text)
        found["projection"] = text.get("projection_size") or text["hidden_size"]
    if "classifier.weight" in names:
        found["labels"] = count_labels(config)
    return found


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a SigLIP checkpoint."""
    vision, text = prefix(names, "vision_model."), prefix(names, "text_model.")
    return Table(
        rules=(
            *under(vision, "image_encoder/", VISION_RULES),
            *under(f"{vision}head.", "image_head/", POOLER),
            *under(text, "text_encoder/", TEXT_RULES),
            *dense(f"{text}head", "text_projection"),
            Rule("logit_scale", "logit_scale", SCALAR),
            Rule("logit_bias", "logit_bias", SCALAR),
            *dense("classifier", "head"),
        ),
        unused=(r"embeddings\.position_ids$",),
    )
