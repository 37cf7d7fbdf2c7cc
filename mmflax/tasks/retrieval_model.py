"""The model behind image-text retrieval: two encoders, a temperature, and a fusion that matches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError, option
from mmflax.models.heads import MAPHead, pool_tokens
from mmflax.models.layers.blocks import KERNEL_INIT, lookup
from mmflax.models.vision_language import read_encoder, read_image
from mmflax.numerics import unit
from mmflax.tasks.inputs import image_mask, pair_keys, picture
from mmflax.tasks.negatives import draw_negatives, interleave, take_rows
from mmflax.tasks.task import Batch

# How an encoder's vector enters the shared space: (projected, with a bias).
PROJECTIONS = {"linear": (True, False), "affine": (True, True), "none": (False, False)}
Rows = dict[str, Array]


class RetrievalModel(nn.Module):
    """Reads `image, tokens, text_mask` (and `image_key, mask` if there).

    Gives `image_embedding` and `text_embedding` [b e] (float32, of length 1), `logit_scale` and
    `logit_bias`, and `used` [b]: whether a row has both an image and a text and is no padding.
    With `fused` also `match` [b 3 2], logits (apart, together) of the pair itself, of its image
    with another text and of its text with another image, and `match_used` [b 3], false where there
    is no such pair. Others come from the `negative_group` rows (0: the whole batch) around a row.

    `image_pool` "map" is attention by a learned probe (SigLIP), `text_pool` "encoder" the token
    that the text encoder's own `pool` takes (CLIP, SigLIP). A projection is "linear", "affine"
    (with a bias) or "none", where the encoder is `embed_dim` wide itself.
    """

    backbone: nn.Module
    embed_dim: int
    temperature: nn.Module
    image_pool: str
    text_pool: str = "cls"
    fused: bool = False
    negative_group: int = 0
    grounding: nn.Module | None = None
    image_projected: str = "linear"
    text_projected: str = "linear"

    def setup(self) -> None:
        def dense(width: int, bias: bool) -> nn.Dense:
            return nn.Dense(width, use_bias=bias, kernel_init=KERNEL_INIT)

        encoder = self.backbone.image_encoder
        if self.image_pool == "map":
            self.image_head = MAPHead(encoder.layer)
        projected, bias = lookup("image_projection", self.image_projected, PROJECTIONS)
        if projected:
            self.image_projection = dense(self.embed_dim, bias)
        projected, bias = lookup("text_projection", self.text_projected, PROJECTIONS)
        if projected:
            self.text_projection = dense(self.embed_dim, bias)
        if self.fused:
            self.match_head = dense(2, True)

    def __call__(self, batch: Batch, *, train: bool) -> dict[str, Array]:
        image, text = self.encode_image(batch, train=train), self.encode_text(batch, train=train)
        used = image["mask"].any(axis=1) & text["mask"].any(axis=1)
        if batch.get("mask") is not None:
            used = used & batch["mask"]
        scale, bias = self.temperature()
        outputs = {
            "image_embedding": image["embedding"],
            "text_embedding": text["embedding"],
            "logit_scale": scale,
            "logit_bias": bias,
            "used": used,
        }
        if self.grounding is not None:
            table = self.backbone.text_encoder.word_embedding.embedding
            outputs["words"] = self.grounding(image["tokens"], table)
        if self.fused:
            keys = pair_keys(batch)
            outputs |= self._match_batch(image, text, scale, used, keys, train)
        return outputs

    def encode_image(self, batch: Batch, *, train: bool) -> Rows:
        """`embedding` [b e], `tokens` [b n d] and `mask` [b n] of the images alone."""
        image, mask = picture(self.backbone, batch), image_mask(self.backbone, batch)
        present = None if mask is None else mask.any(axis=1)
        encoder = self.backbone.image_encoder
        tokens, layers = read_image(encoder, self._layers_read, image, present, mask, train=train)
        if self.image_pool == "map":
            pooled = self.image_head(tokens, mask, train=train)
        else:
            pooled = pool_tokens(tokens, mask, pool=self.image_pool)
        mask = jnp.ones(tokens.shape[:2], bool) if mask is None else mask
        embedding = self._embedded("image", pooled)
        return {"embedding": embedding, "tokens": tokens, "mask": mask, **_named(layers)}

    def encode_text(self, batch: Batch, *, train: bool) -> Rows:
        """`embedding` [b e], `tokens` [b t d] and `mask` [b t] of the texts alone."""
        mask = batch["text_mask"]
        encoder = self.backbone.text_encoder
        tokens, layers = read_encoder(
            encoder, self._layers_read, batch["tokens"], mask, train=train
        )
        if self.text_pool == "encoder":
            pooled = encoder.pool(tokens, batch["tokens"], mask)
        else:
            pooled = pool_tokens(tokens, mask, pool=self.text_pool)
        embedding = self._embedded("text", pooled)
        return {"embedding": embedding, "tokens": tokens, "mask": mask, **_named(layers)}

    def _embedded(self, side: str, pooled: Float[Array, "b d"]) -> Float[Array, "b e"]:
        """An encoder's vector in the shared space, float32 and of length 1."""
        x = pooled.astype(jnp.float32)
        if getattr(self, f"{side}_projected") != "none":
            return unit(getattr(self, f"{side}_projection")(x))
        if x.shape[-1] != self.embed_dim:
            raise MmflaxError(
                f"the {side} encoder is {x.shape[-1]} wide and task.embed_dim is {self.embed_dim}; "
                f"make them equal, or give {option(f'task.{side}_projection', 'linear')}."
            )
        return unit(x)

    def match(self, image: Rows, text: Rows, *, train: bool) -> Float[Array, "b 2"]:
        """Logits (apart, together) of pairs of encoded rows."""
        layers = {
            f"{name}_layers": tuple(rows[f"layer_{i}"] for i in range(self._layers_read))
            for name, rows in (("image", image), ("text", text))
            if self._layers_read
        }
        fused = self.backbone.fusion(
            image["tokens"], text["tokens"], image["mask"], text["mask"], train=train, **layers
        )
        return self.match_head(fused.pooled.astype(jnp.float32))

    @property
    def _layers_read(self) -> int:
        """How many of the encoders' layers the fusion reads, besides their tokens."""
        return self.backbone.fusion.num_layers_read if self.fused else 0

    def _match_batch(
        self, image: Rows, text: Rows, scale: Array, used: Array, keys: Array | None, train: bool
    ) -> Rows:
        # In evaluation the same draw every time.
        key = self.make_rng("dropout") if train else jax.random.key(0)
        embeddings = image["embedding"], text["embedding"]
        wrong = draw_negatives(key, keys, used, self.negative_group, *embeddings, scale)
        pairs_of_image = {
            name: interleave(x, x, take_rows(x, wrong.image))
            for name, x in image.items()
            if name != "embedding"
        }
        pairs_of_text = {
            name: interleave(x, take_rows(x, wrong.text), x)
            for name, x in text.items()
            if name != "embedding"
        }
        logits = self.match(pairs_of_image, pairs_of_text, train=train)
        return {"match": logits.reshape(-1, 3, 2), "match_used": wrong.used}


def _named(layers: tuple[Array, ...] | None) -> Rows:
    """The encoders' layers that a fusion may read, each [b s d], beside their tokens."""
    return {f"layer_{i}": layer for i, layer in enumerate(layers or ())}
