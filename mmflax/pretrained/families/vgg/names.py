"""Names of VGG's checkpoints as torchvision publishes them, such as vgg16-397923af.pth.

`config.json` beside the weights is ours: `{"model_type": "vgg", "widths": [[64, 64], …]}`, or
`"variant": "16"` for published widths; `image_size`, `hidden_dim` and `num_labels` where they are
not 224, 4096 and 1000. A file without it is recognized, and its widths are read from its shapes.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mmflax.pretrained.families import rows
from mmflax.pretrained.families.config_keys import SIDES, SIZE, SIZES, Key, Keys, Kind
from mmflax.pretrained.rules import Rule, Table

MODEL_TYPES = ("vgg",)


def _variant(value: Any) -> bool:
    return isinstance(value, str | int)


def _stacks(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(map(SIZES.accepts, value))


KEYS = {
    "vgg": Keys(
        used=dict(
            variant=Key(Kind("a depth such as '16'", _variant), None),
            widths=Key(Kind("the sizes of each stack, a list of lists", _stacks), None),
            image_size=Key(SIDES, 224),
            hidden_dim=Key(SIZE, 4096),
            num_labels=Key(SIZE, 1000),
        )
    )
}

HEAD = "classifier.6.weight"


def normalized(names: Collection[str]) -> bool:
    """Whether batch normalization follows each convolution: it would be the second layer."""
    return "features.1.weight" in names


def convolutions(names: Collection[str]) -> Iterator[tuple[int, int, int]]:
    """(layer, stack, place in the stack) of every convolution.

    Layers without weights count too: a convolution, its norm and its ReLU, or between stacks one
    layer more, the halving.
    """
    numbers = {
        int(name.split(".")[1])
        for name in names
        if name.startswith("features.") and name.endswith(".weight")
    }
    step = 3 if normalized(names) else 2
    norms = {n for n in numbers if f"features.{n}.running_mean" in names}
    stack = place = 0
    for layer, after in itertools.pairwise([*sorted(numbers - norms), None]):
        assert layer is not None
        yield layer, stack, place
        stack, place = (stack, place + 1) if after == layer + step else (stack + 1, 0)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    sizes = {key: config[key] for key in ("variant", "widths") if config.get(key) is not None}
    size = config["image_size"]
    return dict(
        name="vgg",
        image_encoder=dict(image_size=size, batch_norm=normalized(names), **sizes),
        labels=config["num_labels"] if HEAD in names else 0,
        hidden_dim=config["hidden_dim"],
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a VGG checkpoint; where the stacks end shows in the numbers of its layers."""
    table_rows: list[Rule] = []
    for layer, stack, place in convolutions(names):
        table_rows += rows.conv(f"features.{layer}", f"image_encoder/conv_{stack}_{place}")
        table_rows += rows.batch_norm(
            f"features.{layer + 1}", f"image_encoder/norm_{stack}_{place}"
        )
    for layer, ours in ((0, "hidden_0"), (3, "hidden_1"), (6, "head")):
        table_rows += rows.dense(f"classifier.{layer}", ours)
    return Table(tuple(table_rows), unused=(rows.BATCHES,))


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """The config of a file without one, if it is a VGG."""
    if len(shapes.get("features.0.weight", ())) != 4:
        return None
    widths: list[list[int]] = []
    for layer, stack, _ in convolutions(shapes):
        if stack == len(widths):
            widths.append([])
        widths[stack].append(shapes[f"features.{layer}.weight"][0])
    config: dict[str, Any] = {"model_type": "vgg", "widths": widths}
    if HEAD in shapes:
        labels, hidden = shapes[HEAD]
        config |= {"hidden_dim": hidden, "num_labels": labels}
    return config
