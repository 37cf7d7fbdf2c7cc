"""Regions of an image as tokens: the features of a detector's boxes, and where the boxes lie.

`image` [b n f+4] holds features and boxes side by side (`join_regions`), boxes as x1 y1 x2 y2 in
0..1. Four published forms, of features r and numbers p of the box, with LN a layer norm:

- "lxmert" (Tan & Bansal 2019): (LN(W r) + LN(V p)) / 2, p the corners
- "uniter" (Chen et al. 2020): LN(LN(W r) + LN(V p) + type), p = (x1, y1, x2, y2, w, h, w h)
- "vilbert" (Lu et al. 2019): LN(W r + V p), p = (x1, y1, x2, y2, w h)
- "visual_bert" (Li et al. 2019): W r + type + position, all at position 0, without the box; the
  norm is left to the fusion `merged_attention` of that form

then `depth` self-attention layers, those of BERT. ViLBERT's first region is the whole image: the
mean of the features, with the box 0 0 1 1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.encoders.base import ImageEncoderBase
from mmflax.models.layers.attention import attention_mask, zero_masked
from mmflax.models.layers.blocks import (
    Block,
    LayerNorm,
    constrain_batch,
    dense,
    embedding_table,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Layered, StackConfig
from mmflax.models.layers.stack import Stack
from mmflax.registry import flat, make


class Form(NamedTuple):
    """How features and box become one vector.

    Attributes:
      numbers: of a box [… 4], the numbers [… p] that are projected; None reads no box.
      own_norms: features and box are normalized each by itself.
      scale: of their sum.
      type_row: row of the type table that regions have by default; None has no table.
      positions: there is a position table, read at row 0; whoever normalizes, drops out, too.
      norm: the whole is normalized.
    """

    numbers: Callable[[Array], Array] | None
    own_norms: bool
    scale: float
    type_row: int | None
    positions: bool
    norm: bool


def corners(box: Float[Array, "b n 4"]) -> Float[Array, "b n 4"]:
    """x1 y1 x2 y2, as they are."""
    return box


def sides(box: Float[Array, "b n 4"]) -> Float[Array, "b n 2"]:
    """Width and height."""
    return box[..., 2:] - box[..., :2]


def with_area(box: Float[Array, "b n 4"]) -> Float[Array, "b n 5"]:
    """The corners and the area."""
    return jnp.concatenate([box, sides(box).prod(axis=-1, keepdims=True)], axis=-1)


def with_sides_and_area(box: Float[Array, "b n 4"]) -> Float[Array, "b n 7"]:
    """The corners, width, height and area."""
    return jnp.concatenate([box, sides(box), sides(box).prod(axis=-1, keepdims=True)], axis=-1)


FORMS = {
    "lxmert": Form(corners, True, 0.5, None, False, False),
    "uniter": Form(with_sides_and_area, True, 1.0, 0, False, True),
    "vilbert": Form(with_area, False, 1.0, None, False, True),
    "visual_bert": Form(None, False, 1.0, 1, True, False),
}


def join_regions(
    regions: Float[Array, "b n f"], boxes: Float[Array, "b n 4"] | None
) -> Float[Array, "b n g"]:
    """Features and boxes side by side, as the encoder takes them; without boxes zeros."""
    if boxes is None:
        boxes = jnp.zeros((*regions.shape[:2], 4), regions.dtype)
    return jnp.concatenate([regions, boxes.astype(regions.dtype)], axis=-1)


class Regions(ImageEncoderBase, Layered):
    """Features and boxes to tokens [b n d], in one of four published forms (see above).

    `image_mask` is true where a region is one, not padding; what padding holds never matters.
    `region_types` chooses rows of the type table ("uniter": whether a region is of the first or of
    the second image). With `mask_embedding` a learned vector is added to the features of the
    regions that `masked` names, as UNITER hides them in pretraining. With `layers=k` above 0 the
    result is a pair, as `BERT` gives it.
    """

    width: int
    layer: LayerConfig = flat(
        LayerConfig,
        without=("norm_style", "qkv_bias"),
        num_heads=12,
        norm_style="post",
        epsilon=1e-12,
    )
    stack: StackConfig = flat(StackConfig, depth=0)
    form: str = "lxmert"
    feature_dim: int = 2048
    num_regions: int = 36
    num_types: int = 2
    num_positions: int = 1
    mask_embedding: bool = False

    reads_regions = True
    gives_layers = True

    def num_tokens(self, image_size: Any = None) -> int:
        """Tokens returned: one a region."""
        return self.num_regions

    def setup(self) -> None:
        form = lookup("regions form", self.form, FORMS)
        config, dtypes = self.layer, self.layer.dtypes

        def project() -> nn.Dense:
            return dense(self.width, dtypes)

        self.feature_projection = project()
        if form.numbers is not None:
            self.box_projection = project()
        if form.own_norms:
            self.feature_norm = LayerNorm(**config.norm)
            self.box_norm = LayerNorm(**config.norm)
        if form.type_row is not None:
            self.type_embedding = embedding_table(self.num_types, self.width, dtypes)
        if form.positions:
            self.position_embedding = embedding_table(self.num_positions, self.width, dtypes)
        if self.mask_embedding:
            self.hidden_embedding = embedding_table(2, self.feature_dim, dtypes)
        if form.norm:
            self.norm = LayerNorm(**config.norm)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.encoder = Stack(functools.partial(Block, config), self.stack)

    def __call__(
        self,
        image: Float[Array, "b n g"],
        image_mask: Bool[Array, "b n"] | None = None,
        region_types: Int[Array, "b n"] | None = None,
        masked: Bool[Array, "b n"] | None = None,
        *,
        layers: int = 0,
        train: bool,
    ) -> Float[Array, "b n d"] | tuple[Float[Array, "b n d"], tuple[Float[Array, "b n d"], ...]]:
        if image.shape[-1] != self.feature_dim + 4:
            raise MmflaxError(
                f"image has {image.shape[-1]} numbers a region; expected {self.feature_dim} "
                "features and the 4 of the box: set feature_dim, or join both with join_regions."
            )
        image = zero_masked(image, image_mask)
        x = self._embed(image[..., :-4], image[..., -4:], region_types, masked)
        if not FORMS[self.form].positions:
            x = self.dropout(x, deterministic=not train)
        x = constrain_batch(x)
        return self.encoder(x, attention_mask(image_mask), layers=layers, train=train)

    def _embed(
        self,
        features: Float[Array, "b n f"],
        box: Float[Array, "b n 4"],
        types: Int[Array, "b n"] | None,
        masked: Bool[Array, "b n"] | None,
    ) -> Float[Array, "b n d"]:
        form = FORMS[self.form]
        if self.mask_embedding:
            row = self.hidden_embedding(jnp.asarray([1]))[None]
            if masked is not None:
                features = features + jnp.where(masked[..., None], row, 0.0).astype(features.dtype)
        x = self.feature_projection(features)
        if form.numbers is not None:
            y = self.box_projection(form.numbers(box))
            if form.own_norms:
                x, y = self.feature_norm(x), self.box_norm(y)
            x = (x + y) * form.scale
        if form.type_row is not None:
            types = jnp.full(x.shape[:2], form.type_row) if types is None else types
            x = x + self.type_embedding(types)
        if form.positions:
            x = x + self.position_embedding(jnp.asarray([0]))[None]
        return self.norm(x) if form.norm else x

    @property
    def feature_kernel(self) -> Float[Array, "f d"]:
        """The kernel of the features, which UNITER's regression of features ties."""
        return self.feature_projection.variables["params"]["kernel"]


def build(**fields: Any) -> Regions:
    """A `Regions`; `fields` are its own and those of its layers."""
    return make(Regions, fields)
