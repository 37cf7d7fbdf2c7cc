"""Names of ALIGN's checkpoints (transformers' AlignModel and its parts)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.clip.names import one_side
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    COUNTS,
    EPSILON,
    POSITIVE,
    RATE,
    SIDES,
    SIZE,
    SIZES,
    Key,
    Keys,
    one_of,
)
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("align", "align_text_model", "align_vision_model")

# The configs of both sides, with the defaults of transformers' classes.
TEXT = Keys(used=configs.BERT_USED, fixed=configs.BERT_FIXED, harmless=configs.BERT_HARMLESS)
VISION = Keys(
    used=dict(
        image_size=Key(SIDES, 600),
        width_coefficient=Key(POSITIVE, 2.0),
        depth_coefficient=Key(POSITIVE, 3.1),
        depth_divisor=Key(SIZE, 8),
        kernel_sizes=Key(SIZES, (3, 3, 5, 3, 5, 5, 3)),
        in_channels=Key(SIZES, (32, 16, 24, 40, 80, 112, 192)),
        out_channels=Key(SIZES, (16, 24, 40, 80, 112, 192, 320)),
        depthwise_padding=Key(COUNTS, ()),
        strides=Key(SIZES, (1, 2, 2, 2, 1, 2, 1)),
        num_block_repeats=Key(SIZES, (1, 2, 2, 3, 3, 4, 1)),
        expand_ratios=Key(SIZES, (1, 6, 6, 6, 6, 6, 6)),
        squeeze_expansion_ratio=Key(EPSILON, 0.25),
        hidden_act=Key(ACTIVATION, "swish"),
        pooling_type=Key(one_of("mean", "max"), "mean"),
        batch_norm_eps=Key(EPSILON, 1e-3),
        drop_connect_rate=Key(RATE, 0.2),
    ),
    fixed=dict(num_channels=(3,)),
    # The size of the pooled map, which only the pooling's window follows; a count of the
    # layers; how fast training's statistics move.
    harmless=("hidden_dim", "num_hidden_layers", "batch_norm_momentum"),
    equally_long=(
        "kernel_sizes",
        "in_channels",
        "out_channels",
        "strides",
        "num_block_repeats",
        "expand_ratios",
    ),
)
KEYS = {
    "align": Keys(
        used=dict(projection_dim=Key(SIZE, 640)),
        harmless=("temperature_init_value",),
        parts=dict(text_config=TEXT, vision_config=VISION),
    ),
    "align_text_model": TEXT,
    "align_vision_model": VISION,
}

IN, OUT = "encoder.blocks.{i}", "blocks_{i}"
# transformers' AlignVisionModel and our encoder `efficientnet`.
VISION_RULES = (
    *rows.conv("embeddings.convolution", "conv_stem"),
    *rows.batch_norm("embeddings.batchnorm", "stem_norm"),
    *rows.conv(f"{IN}.expansion.expand_conv", f"{OUT}/conv_expand"),
    *rows.batch_norm(f"{IN}.expansion.expand_bn", f"{OUT}/expand_norm"),
    *rows.conv(f"{IN}.depthwise_conv.depthwise_conv", f"{OUT}/conv_depthwise"),
    *rows.batch_norm(f"{IN}.depthwise_conv.depthwise_norm", f"{OUT}/depthwise_norm"),
    *rows.conv(f"{IN}.squeeze_excite.reduce", f"{OUT}/conv_squeeze"),
    *rows.conv(f"{IN}.squeeze_excite.expand", f"{OUT}/conv_excite"),
    *rows.conv(f"{IN}.projection.project_conv", f"{OUT}/conv_project"),
    *rows.batch_norm(f"{IN}.projection.project_bn", f"{OUT}/project_norm"),
)


def vision_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of the image encoder."""
    tuples = dict(
        kernel_sizes="kernel_sizes", widths_in="in_channels", widths="out_channels",
        square_padding="depthwise_padding", strides="strides", repeats="num_block_repeats",
        expands="expand_ratios",
    )  # fmt: skip
    return dict(
        image_size=configs.sides(config["image_size"]),
        width_factor=config["width_coefficient"],
        depth_factor=config["depth_coefficient"],
        divisor=config["depth_divisor"],
        squeeze_factor=config["squeeze_expansion_ratio"],
        activation=configs.activation(config["hidden_act"]),
        epsilon=config["batch_norm_eps"],
        drop_path_rate=config["drop_connect_rate"],
        **{ours: tuple(config[theirs]) for ours, theirs in tuples.items()},
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    fields: dict[str, Any] = dict(name="align")
    if configs.has(names, "embeddings.convolution.weight"):
        vision = one_side(config, "vision")
        fields["image_encoder"] = vision_fields(vision)
        fields["pooling"] = vision["pooling_type"]
    if configs.has(names, "word_embeddings.weight"):
        fields["text_encoder"] = configs.bert_fields(one_side(config, "text"))
        fields["pooler"] = configs.has(names, "pooler.dense.weight")
    if "text_projection.weight" in names:
        fields["projection"] = config["projection_dim"]
    return fields


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of an ALIGN checkpoint."""
    return Table(
        rules=(
            *under(configs.prefix(names, "vision_model."), "image_encoder/", VISION_RULES),
            *under(configs.prefix(names, "text_model."), "text_encoder/", rows.BERT),
            *rows.dense("text_projection", "text_projection"),
            Rule("temperature", "temperature"),
        ),
        unused=(rows.BATCHES, rows.POSITION_IDS),
    )
