"""ViT and DeiT as published: the encoder with a pooler, a classifier, or DeiT's two classifiers.

Dosovitskiy et al. 2021 (arXiv:2010.11929) and Touvron et al. 2021 (arXiv:2012.12877).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mmflax.models.encoders.vit import ViT
from mmflax.models.encoders.vit import build as build_encoder
from mmflax.models.layers.blocks import Pooler
from mmflax.pretrained.families.base import built, image_zeros


class ViTFamily(nn.Module):
    """`image` to a dict.

    `last_hidden_state` [b n d]; with `pooler_dim` above 0 `pooler_output` [b p] of CLS; with
    `labels` above 0 `logits` [b labels] of CLS. With `teacher` there are two classifiers, of CLS
    and of the distillation token: `cls_logits`, `distillation_logits`, and `logits`, their mean.
    """

    image_encoder: ViT
    pooler_dim: int = 0
    pooler_activation: str = "tanh"
    labels: int = 0
    teacher: bool = False

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return image_zeros(self.image_encoder, rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder = self.image_encoder
        dtypes = encoder.dtypes
        x: Any = encoder(batch["image"], train=train)
        out = {"last_hidden_state": x}
        if self.pooler_dim:
            pooler = Pooler(self.pooler_dim, self.pooler_activation, name="pooler", **dtypes)
            out["pooler_output"] = pooler(x[:, 0])
        if self.labels:
            out["logits"] = nn.Dense(self.labels, name="head", **dtypes)(x[:, 0])
        if self.labels and self.teacher:
            head = nn.Dense(self.labels, name="distillation_head", **dtypes)
            out["cls_logits"], out["distillation_logits"] = out["logits"], head(x[:, 1])
            half = jnp.asarray(0.5, x.dtype)
            out["logits"] = (out["cls_logits"] + out["distillation_logits"]) * half
        return out


def build(**fields: Any) -> ViTFamily:
    """A `ViTFamily`; `image_encoder` are the keywords of the encoder `vit`."""
    return ViTFamily(**built(fields, image_encoder=build_encoder))
