"""Names of ViT's checkpoints (transformers' ViTModel and ViTForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.rules import FIRST, Rule, Table, under

MODEL_TYPES = ("vit",)

# Of the bare model, and our encoder `vit`.
ENCODER = (
    Rule("embeddings.cls_token", "cls"),
    Rule("embeddings.distillation_token", "distillation_token"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    *rows.conv("embeddings.patch_embeddings.projection", "patch_embedding"),
    *rows.vit_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *rows.norm("layernorm", "norm"),
)


def encoder_fields(config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`; what it leaves out is as transformers has it."""
    return dict(
        width=config.get("hidden_size", 768),
        depth=config.get("num_hidden_layers", 12),
        num_heads=config.get("num_attention_heads", 12),
        mlp_dim=config.get("intermediate_size", 3072),
        patch_size=configs.side(config.get("patch_size", 16)),
        image_size=configs.sides(config.get("image_size", 224)),
        any_size=True,
        crop=True,
        qkv_bias=config.get("qkv_bias", True),
        activation=configs.activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-12),
        dropout_rate=config.get("hidden_dropout_prob", 0.0),
        attention_dropout_rate=config.get("attention_probs_dropout_prob", 0.0),
        **more,
    )


def pooler_fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Keywords of the pooler, if the file has one."""
    if not configs.has(names, "pooler.dense.weight"):
        return {}
    return dict(
        pooler_dim=config.get("pooler_output_size") or config.get("hidden_size", 768),
        pooler_activation=configs.activation(config.get("pooler_act", "tanh")),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="vit",
        image_encoder=encoder_fields(config),
        labels=configs.classifier_labels(config, names),
        **pooler_fields(config, names),
    )


def backbone(names: Collection[str], start: str) -> rows.Rows:
    """The encoder with its pooler, with or without the prefix."""
    vit = configs.prefix(names, start)
    return (
        *under(vit, "image_encoder/", ENCODER),
        *rows.dense(f"{vit}pooler.dense", "pooler/dense"),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViT checkpoint."""
    return Table(
        (*backbone(names, "vit."), *rows.dense("classifier", "head")), unused=(rows.MASK_TOKEN,)
    )
