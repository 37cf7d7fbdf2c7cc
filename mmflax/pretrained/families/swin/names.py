"""Names of Swin's checkpoints (transformers' SwinModel and SwinForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import activation, attention, count_labels, dense, norm
from mmflax.pretrained.families.vit.names import side, sides
from mmflax.pretrained.rules import CONV, FIRST, LINEAR, Rule, Table, under

MODEL_TYPES = ("swin",)

THEIRS, OURS = "encoder.layers.{s}.blocks.{i}", "stage_{s}/layers_{i}"
INNER = f"{THEIRS}.attention.self"

# Of the bare model, and our encoder `swin`.
ENCODER = (
    Rule("embeddings.patch_embeddings.projection.weight", "patch_embedding/kernel", CONV),
    Rule("embeddings.patch_embeddings.projection.bias", "patch_embedding/bias"),
    Rule("embeddings.position_embeddings", "position_embedding", FIRST),
    *norm("embeddings.norm", "embedding_norm"),
    *norm(f"{THEIRS}.layernorm_before", f"{OURS}/attention_norm"),
    Rule(
        f"{INNER}.relative_position_bias_table", f"{OURS}/attention/relative_position_embedding"
    ),
    *attention(
        f"{INNER}.query", f"{INNER}.key", f"{INNER}.value", f"{THEIRS}.attention.output.dense",
        f"{OURS}/attention/windows",
    ),
    *norm(f"{THEIRS}.layernorm_after", f"{OURS}/mlp_norm"),
    *dense(f"{THEIRS}.intermediate.dense", f"{OURS}/mlp/fc1"),
    *dense(f"{THEIRS}.output.dense", f"{OURS}/mlp/fc2"),
    *norm("encoder.layers.{s}.downsample.norm", "merging_{s}/norm"),
    Rule("encoder.layers.{s}.downsample.reduction.weight", "merging_{s}/reduction/kernel", LINEAR),
    *norm("layernorm", "norm"),
)  # fmt: skip


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`; what it leaves out is as transformers has it."""
    return dict(
        width=config.get("embed_dim", 96),
        depths=tuple(config.get("depths", (2, 2, 6, 2))),
        num_heads=tuple(config.get("num_heads", (3, 6, 12, 24))),
        window_size=config.get("window_size", 7),
        mlp_ratio=config.get("mlp_ratio", 4.0),
        patch_size=side(config.get("patch_size", 4)),
        image_size=sides(config.get("image_size", 224)),
        qkv_bias=config.get("qkv_bias", True),
        position="learned" if config.get("use_absolute_embeddings") else "none",
        activation=activation(config.get("hidden_act", "gelu")),
        epsilon=config.get("layer_norm_eps", 1e-5),
        dropout_rate=config.get("hidden_dropout_prob", 0.0),
        attention_dropout_rate=config.get("attention_probs_dropout_prob", 0.0),
        drop_path_rate=config.get("drop_path_rate", 0.1),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    return dict(
        name="grid",
        image_encoder=dict(name="swin", **encoder_fields(config)),
        labels=count_labels(config) if "classifier.weight" in names else 0,
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a Swin checkpoint, with or without the prefix `swin.`."""
    prefix = "swin." if any(name.startswith("swin.") for name in names) else ""
    return Table(
        (*under(prefix, "image_encoder/", ENCODER), *dense("classifier", "head")),
        unused=(
            # Follows from the window's size; kept as a buffer by older releases.
            r"relative_position_index$",
            # Stands for hidden patches in masked image modelling, and nowhere else.
            r"embeddings\.mask_token$",
        ),
    )
