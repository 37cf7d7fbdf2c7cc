"""VGG as torchvision publishes it: the grid's tokens and the classifier of three dense layers."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmflax.models.encoders.vgg import VGG
from mmflax.models.encoders.vgg import build as build_encoder
from mmflax.pretrained.families.base import built, image_zeros

SIDE = 7  # of the map that the classifier reads: 224 pixels, halved five times


class VGGFamily(nn.Module):
    """`image` to a dict.

    `last_hidden_state` [b n c], row by row; with `labels` above 0 `pooler_output` [b hidden_dim],
    what enters the last dense layer (the "fc7 features" of early VQA models), and `logits`
    [b labels]. Images of any size are taken: the classifier reads means over 7 x 7 parts.
    """

    image_encoder: VGG
    labels: int = 0
    hidden_dim: int = 4096
    dropout_rate: float = 0.5

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        return image_zeros(self.image_encoder, rows)

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        encoder, image = self.image_encoder, batch["image"]
        dtypes = encoder.dtypes
        x: Any = encoder(image, train=train)
        out = {"last_hidden_state": x}
        if self.labels:
            y = adaptive_mean(x.reshape(len(x), *encoder.grid(image.shape[1:3]), -1), SIDE)
            # Channels first, as the published kernel reads them.
            y = y.transpose(0, 3, 1, 2).reshape(len(x), -1)
            for i in range(2):
                y = nn.relu(nn.Dense(self.hidden_dim, name=f"hidden_{i}", **dtypes)(y))
                y = nn.Dropout(self.dropout_rate, deterministic=not train)(y)
            out["pooler_output"] = y
            out["logits"] = nn.Dense(self.labels, name="head", **dtypes)(y)
        return out


def adaptive_mean(x: Float[Array, "b h w c"], side: int) -> Float[Array, "b s s c"]:
    """Means over side x side parts, which overlap where the map does not divide, as PyTorch's."""

    def parts(length: int) -> Array:
        matrix = np.zeros((side, length))
        for i in range(side):
            start, stop = i * length // side, -(-(i + 1) * length // side)
            matrix[i, start:stop] = 1 / (stop - start)
        return jnp.asarray(matrix, x.dtype)

    return jnp.einsum("sh,tw,bhwc->bstc", parts(x.shape[1]), parts(x.shape[2]), x)


def build(**fields: Any) -> VGGFamily:
    """A `VGGFamily`; `image_encoder` are the keywords of the encoder `vgg`."""
    return VGGFamily(**built(fields, image_encoder=build_encoder))
