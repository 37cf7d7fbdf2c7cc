"""Names of ResNet's checkpoints (transformers' ResNetModel and ResNetForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    FLAG,
    SIZE,
    SIZES,
    Key,
    Keys,
    one_of,
)
from mmflax.pretrained.rules import Table, under

MODEL_TYPES = ("resnet",)
KEYS = {
    "resnet": Keys(
        used=dict(
            embedding_size=Key(SIZE, 64),
            hidden_sizes=Key(SIZES, (256, 512, 1024, 2048)),
            depths=Key(SIZES, (3, 4, 6, 3)),
            layer_type=Key(one_of("basic", "bottleneck"), "bottleneck"),
            hidden_act=Key(ACTIVATION, "relu"),
            downsample_in_first_stage=Key(FLAG, False),
            downsample_in_bottleneck=Key(FLAG, False),
        ),
        fixed=dict(num_channels=(3,)),
        harmless=configs.BACKBONE,
        equally_long=("depths", "hidden_sizes"),
    )
}

THEIRS, OURS = "encoder.stages.{s}.layers.{i}", "stage_{s}_block_{i}"


def convolution(theirs: str, ours: str) -> rows.Rows:
    """A convolution and its norm."""
    return (
        *rows.conv(f"{theirs}.convolution", f"{ours}/conv"),
        *rows.batch_norm(f"{theirs}.normalization", f"{ours}/norm"),
    )


# Of the bare model, and our encoder `resnet`.
ENCODER = (
    *convolution("embedder.embedder", "stem"),
    *convolution(f"{THEIRS}.shortcut", f"{OURS}/shortcut"),
    *convolution(f"{THEIRS}.layer.{{j}}", f"{OURS}/conv_{{j}}"),
)


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`."""
    return dict(
        stem=config["embedding_size"],
        widths=tuple(config["hidden_sizes"]),
        depths=tuple(config["depths"]),
        block=config["layer_type"],
        image_size=224,
        activation=configs.activation(config["hidden_act"]),
        downsample_first_stage=config["downsample_in_first_stage"],
        stride_first=config["downsample_in_bottleneck"],
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return dict(
        name="grid",
        image_encoder=dict(name="resnet", **encoder_fields(config)),
        labels=configs.count_labels(config) if "classifier.1.weight" in names else 0,
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ResNet checkpoint, with or without the prefix `resnet.`."""
    resnet = configs.prefix(names, "resnet.")
    return Table(
        (*under(resnet, "image_encoder/", ENCODER), *rows.dense("classifier.1", "head")),
        unused=(rows.BATCHES,),
    )
