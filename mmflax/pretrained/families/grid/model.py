"""Swin and ResNet as published: the tokens of a grid, their mean, and a classifier of it."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from mmflax.models.encoders import resnet, swin
from mmflax.models.layers.blocks import lookup
from mmflax.pretrained.families.base import image_zeros

ENCODERS = {"swin": swin.build, "resnet": resnet.build}


class GridFamily(nn.Module):
    """`image` to a dict.

    `last_hidden_state` [b n d], row by row (transformers' ResNet gives the grid [b d h w]);
    `pooler_output` [b d], the mean; with `labels` above 0 `logits` [b labels].
    """

    image_encoder: swin.Swin | resnet.ResNet
    labels: int = 0

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return image_zeros(self.image_encoder, rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder = self.image_encoder
        dtypes = encoder.dtypes
        x: Any = encoder(batch["image"], train=train)
        out = {"last_hidden_state": x, "pooler_output": x.mean(axis=1)}
        if self.labels:
            out["logits"] = nn.Dense(self.labels, name="head", **dtypes)(out["pooler_output"])
        return out


def build(*, image_encoder: Mapping[str, Any], labels: int = 0) -> GridFamily:
    """A `GridFamily`; `image_encoder` are `name`, swin or resnet, and that encoder's keywords."""
    rest = dict(image_encoder)
    encoder = lookup("image_encoder.name", rest.pop("name"), ENCODERS)
    return GridFamily(encoder(**rest), labels)
