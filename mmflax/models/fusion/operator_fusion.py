"""Where a vector operator joins two modalities: early, late, or both.

An operator makes one vector of two, `(image[* d], text[* d]) -> [* e]`. The placements are those of
Baltrušaitis et al. 2019 ("Multimodal machine learning", sec. 6.1), whose late fusion combines
decisions where this one combines the vectors that a head decides by:

- "early", of features: every token is fused with the other modality's summary, `operator(x_i, l)`
  and `operator(v, y_j)`, and ONE stack of `depth` layers then reads all fused tokens together. One
  stack, because fusing early means that what follows is a model of both.
- "late", of modalities: each modality has `depth` layers of its own and becomes a vector; the
  operator is the only place where the two meet. The papers of the operators place them so.
- "hybrid": both paths; streams and vectors of the two are concatenated and projected.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array

from mmflax.models.fusion.base import Fused, Fusion, Mask
from mmflax.models.layers.attention import attention_mask, joint_mask
from mmflax.models.layers.blocks import dense, lookup

Operator = Callable[[Array, Array], Array]
PLACEMENTS = {"early": (True, False), "late": (False, True), "hybrid": (True, True)}


class OperatorFusion(Fusion):
    """A fusion by an operator; a kind says which. `pooled` is [b 2*width] early (tanh poolers of
    text and image), [b e] late (the operator's result) and [b width] hybrid.

    `causal` is refused: the summary of the text is of all its words.
    """

    placement: str = "late"

    def operator(self, name: str) -> Operator:
        """The operator of this kind, with its parameters under `name`."""
        raise NotImplementedError

    @property
    def absent(self) -> float:
        """What every entry of an absent modality's vector is: what changes the other the least."""
        return 0.0

    @nn.compact
    def fuse(
        self, image: Array, text: Array, image_mask: Mask, text_mask: Mask, *, train: bool
    ) -> Fused:
        early, late = lookup("placement", self.placement, PLACEMENTS)
        image = self.project("image")(image, image_mask)
        text = self.project("text")(text, text_mask)
        inputs = (image, text, image_mask, text_mask, self.types())
        paths = [self._early(*inputs, train=train)] if early else []
        if late:
            paths.append(self._late(*inputs, train=train))
        if len(paths) == 1:
            return paths[0]
        names = ("image_hybrid", "text_hybrid", "pooled_hybrid")
        projects = [dense(self.width, self.dtypes, name=name) for name in names]
        both = (jnp.concatenate(parts, axis=-1) for parts in zip(*paths, strict=True))
        return Fused(*(project(x) for project, x in zip(projects, both, strict=True)))

    def _early(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        types: tuple[Array, Array],
        *,
        train: bool,
    ) -> Fused:
        fuse = self.operator("early_operator")
        project = dense(self.width, self.dtypes, name="early_projection")
        image_vector = self.summary(image, image_mask, pool=self.image_pool, absent=self.absent)
        text_vector = self.summary(text, text_mask, pool=self.text_pool, absent=self.absent)
        image, text = (
            project(fuse(image, jnp.broadcast_to(text_vector[:, None], image.shape))) + types[0],
            project(fuse(jnp.broadcast_to(image_vector[:, None], text.shape), text)) + types[1],
        )
        tokens = jnp.concatenate([text, image], axis=1)
        mask = joint_mask(text_mask, image_mask, (text.shape[1], image.shape[1]))
        tokens = self.layers("early_encoder")(tokens, attention_mask(mask), train=train)
        tokens = self.final_norm(tokens, "early")
        text, image = jnp.split(tokens, [text.shape[1]], axis=1)
        return Fused(image, text, self.pool_pair(image, text, image_mask, text_mask))

    def _late(
        self,
        image: Array,
        text: Array,
        image_mask: Mask,
        text_mask: Mask,
        types: tuple[Array, Array],
        *,
        train: bool,
    ) -> Fused:
        to_image, to_text = attention_mask(image_mask), attention_mask(text_mask)
        image = self.layers("image_encoder")(image + types[0], to_image, train=train)
        text = self.layers("text_encoder")(text + types[1], to_text, train=train)
        image, text = self.final_norm(image, "image"), self.final_norm(text, "text")
        image_vector = self.summary(image, image_mask, pool=self.image_pool, absent=self.absent)
        text_vector = self.summary(text, text_mask, pool=self.text_pool, absent=self.absent)
        return Fused(image, text, self.operator("late_operator")(image_vector, text_vector))
