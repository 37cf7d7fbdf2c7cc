"""Names of Swin's checkpoints (transformers' SwinModel and SwinForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.rules import FIRST, LINEAR, Rule, Table, under

MODEL_TYPES = ("swin",)

THEIRS, OURS = "encoder.layers.{s}.blocks.{i}", "stage_{s}/layers_{i}"
INNER = f"{THEIRS}.attention.self"

# Of the bare model, and our encoder `swin`.
ENCODER = (
    *rows.conv("embeddings.patch_embeddings.projection", "patch_embedding"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    *rows.norm("embeddings.norm", "embedding_norm"),
    *rows.norm(f"{THEIRS}.layernorm_before", f"{OURS}/attention_norm"),
    Rule(
        f"{INNER}.relative_position_bias_table", f"{OURS}/attention/relative_position_embedding"
    ),
    *rows.attention(
        f"{INNER}.query", f"{INNER}.key", f"{INNER}.value", f"{THEIRS}.attention.output.dense",
        f"{OURS}/attention/windows",
    ),
    *rows.norm(f"{THEIRS}.layernorm_after", f"{OURS}/mlp_norm"),
    *rows.dense(f"{THEIRS}.intermediate.dense", f"{OURS}/mlp/fc1"),
    *rows.dense(f"{THEIRS}.output.dense", f"{OURS}/mlp/fc2"),
    *rows.norm("encoder.layers.{s}.downsample.norm", "merging_{s}/norm"),
    Rule("encoder.layers.{s}.downsample.reduction.weight", "merging_{s}/reduction/kernel", LINEAR),
    *rows.norm("layernorm", "norm"),
)  # fmt: skip


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`; what it leaves out is as transformers has it."""
    return dict(
        width=config.get("embed_dim", 96),
        depths=tuple(config.get("depths", (2, 2, 6, 2))),
        num_heads=tuple(config.get("num_heads", (3, 6, 12, 24))),
        window_size=config.get("window_size", 7),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        patch_size=configs.side(config.get("patch_size", 4)),
        image_size=configs.sides(config.get("image_size", 224)),
        qkv_bias=config.get("qkv_bias", True),
        position="learned" if config.get("use_absolute_embeddings") else "none",
        activation=configs.activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-5),
        dropout_rate=config.get("hidden_dropout_prob", 0.0),
        attention_dropout_rate=config.get("attention_probs_dropout_prob", 0.0),
        drop_path_rate=config.get("drop_path_rate", 0.1),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="grid",
        image_encoder=dict(name="swin", **encoder_fields(config)),
        labels=configs.classifier_labels(config, names),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a Swin checkpoint, with or without the prefix `swin.`."""
    return Table(
        (
            *under(configs.prefix(names, "swin."), "image_encoder/", ENCODER),
            *rows.dense("classifier", "head"),
        ),
        unused=(
            # Follows from the window's size; kept as a buffer by older releases.
            r"relative_position_index$",
            rows.MASK_TOKEN,
        ),
    )
