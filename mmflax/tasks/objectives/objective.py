"""What an objective is, and what it may read: the clean pass over the batch, made once for all."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.batch_keys import require
from mmflax.errors import MmflaxError
from mmflax.metrics.accuracy import Metric
from mmflax.models.layers.attention import masked_mean
from mmflax.models.vision_language import Encoded
from mmflax.tasks.task import Batch, Outputs


class Objective(NamedTuple):
    """`module(clean, *, train) -> outputs` holds the heads; the rest is pure.

    - `loss(outputs, batch) -> [b]`
    - `metrics(outputs, batch) -> {name: (sum [b], count [b])}`, beside the loss itself
    """

    module: nn.Module
    loss: Callable[[Outputs, Batch], Float[Array, "b"]]
    metrics: Callable[[Outputs, Batch], dict[str, Metric]] = lambda outputs, batch: {}


@dataclasses.dataclass(frozen=True)
class CleanPass:
    """A batch as the backbone read it, with nothing hidden from it.

    `others` are the outputs of the objectives before this one, by name. Objectives that hide or
    exchange a part encode that part again and fuse it with what is here.
    """

    backbone: nn.Module
    batch: Batch
    encoded: Encoded
    others: Mapping[str, Outputs]

    @property
    def paired(self) -> Bool[Array, "b"]:
        """Rows that have both an image and a text and are no padding."""
        both = self.encoded.image_mask.any(axis=1) & self.encoded.text_mask.any(axis=1)
        return both & self.batch["mask"] if "mask" in self.batch else both

    @property
    def word_table(self) -> Float[Array, "v e"]:
        """The text encoder's word embeddings."""
        return self.backbone.text_encoder.word_embedding.embedding

    def require(self, who: str, key: str) -> Any:
        """`batch[key]`, or an error that says how to get it."""
        otherwise = f"leave it out with --config.task.objectives.{who}=None"
        return require(self.batch, key, f"The objective {who!r}", otherwise)

    def summaries(self) -> tuple[Float[Array, "b i"], Float[Array, "b j"]]:
        """One vector for the image and one for the text, before fusion: the mean of the image's
        tokens, the text's first."""
        image = masked_mean(self.encoded.image_tokens, self.encoded.image_mask)
        return image, self.encoded.text_tokens[:, 0]

    def encode_image(self, image: Float[Array, "b h w 3"], *, train: bool) -> Float[Array, "b n i"]:
        """The image encoder's tokens of other pixels; those of absent images count as 0."""
        present = self.encoded.image_mask.any(axis=1)[:, None, None, None]
        image = jnp.where(present, image, jnp.zeros_like(image))
        return self.backbone.image_encoder(image, train=train)

    def encode_text(
        self, tokens: Int[Array, "b t"], *, causal: bool = False, train: bool
    ) -> Float[Array, "b t j"]:
        """The text encoder's tokens of other words in the same places."""
        more = {"causal": True} if causal else {}
        encoder = self.backbone.text_encoder
        return encoder(tokens, self.encoded.text_mask, train=train, **more)

    def fuse(
        self,
        image: Float[Array, "r n i"] | None = None,
        text: Float[Array, "r t j"] | None = None,
        image_mask: Bool[Array, "r n"] | None = None,
        text_mask: Bool[Array, "r t"] | None = None,
        *,
        causal: bool = False,
        train: bool,
    ) -> Any:
        """`Fused` of these streams and masks; what is left out is the clean pass's."""
        encoded, fusion = self.encoded, self.backbone.fusion
        if fusion.num_layers_read:
            raise MmflaxError(
                f"{type(fusion).__name__} reads layers inside the encoders, which are not kept for "
                "objectives that fuse again (itm, mlm, masked_patch, masked_region, prefix_lm); "
                "give another fusion, as in --config.model.fusion.name=co_attention, or leave "
                "these out, as in --config.task.objectives.itm=None."
            )
        more = {"causal": True} if causal else {}
        return fusion(
            encoded.image_tokens if image is None else image,
            encoded.text_tokens if text is None else text,
            encoded.image_mask if image_mask is None else image_mask,
            encoded.text_mask if text_mask is None else text_mask,
            train=train,
            **more,
        )


def draw_key(module: nn.Module, train: bool) -> Key[Array, ""]:
    """A new key in training; always the same in evaluation, which then repeats itself."""
    return module.make_rng("dropout") if train else jax.random.key(0)


def mean_metric(values: Float[Array, "b"], used: Bool[Array, "b"]) -> Metric:
    """`values` over the rows in use, as (sum, count)."""
    return jnp.where(used, values, 0.0), used.astype(jnp.float32)
