"""Names of ResNet's checkpoints (transformers' ResNetModel and ResNetForImageClassification)."""

from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families.bert.names import activation, count_labels, dense
from mmflax.pretrained.rules import CONV, Rule, Table, under

MODEL_TYPES = ("resnet",)

THEIRS, OURS = "encoder.stages.{s}.layers.{i}", "stage_{s}_block_{i}"
# How many images the running statistics are of.
UNUSED = (r"\.num_batches_tracked$",)


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A BatchNorm with its statistics."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/scale"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
        Rule(f"{theirs}.running_mean", f"{ours}/mean"),
        Rule(f"{theirs}.running_var", f"{ours}/var"),
    )


def convolution(theirs: str, ours: str) -> tuple[Rule, ...]:
    """A convolution and its norm."""
    return (
        Rule(f"{theirs}.convolution.weight", f"{ours}/conv/kernel", CONV),
        *batch_norm(f"{theirs}.normalization", f"{ours}/norm"),
    )


# Of the bare model, and our encoder `resnet`.
ENCODER = (
    *convolution("embedder.embedder", "stem"),
    *convolution(f"{THEIRS}.shortcut", f"{OURS}/shortcut"),
    *convolution(f"{THEIRS}.layer.{{j}}", f"{OURS}/conv_{{j}}"),
)


def encoder_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of our encoder for a `config.json`; what it leaves out is as transformers has it."""
    return dict(
        stem=config.get("embedding_size", 64),
        widths=tuple(config.get("hidden_sizes", (256, 512, 1024, 2048))),
        depths=tuple(config.get("depths", (3, 4, 6, 3))),
        block=config.get("layer_type", "bottleneck"),
        image_size=224,
        activation=activation(config.get("hidden_act", "relu")),
        downsample_first_stage=config.get("downsample_in_first_stage", False),
        stride_first=config.get("downsample_in_bottleneck", False),
    )


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    return dict(
        name="grid",
        image_encoder=dict(name="resnet", **encoder_fields(config)),
        labels=count_labels(config) if "classifier.1.weight" in names else 0,
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ResNet checkpoint, with or without the prefix `resnet.`."""
    prefix = "resnet." if any(name.startswith("resnet.") for name in names) else ""
    return Table(
        (*under(prefix, "image_encoder/", ENCODER), *dense("classifier.1", "head")), unused=UNUSED
    )
