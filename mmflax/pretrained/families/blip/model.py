"""BLIP as published (Li et al. 2022, arXiv:2201.12086): an image encoder, and texts that read it.

The text encoder reads the image in every layer, or with no image is a plain encoder of text; the
decoder, which writes captions and answers, has layers of its own.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mmflax.models.decoder.decoder import Context, Decoder
from mmflax.models.decoder.decoder import build as build_decoder
from mmflax.models.decoder.decoding import Limits
from mmflax.models.encoders.bert import BERT
from mmflax.models.encoders.bert import build as build_text
from mmflax.models.encoders.vit import ViT
from mmflax.models.encoders.vit import build as build_image
from mmflax.models.layers.blocks import LayerNorm
from mmflax.numerics import unit
from mmflax.pretrained.families.base import built, image_zeros, text_zeros


class BlipFamily(nn.Module):
    """Reads `image`, `tokens`, `text_mask`, writes `target`, `target_mask`; gives a dict.

    By `task`, each with `last_hidden_state` [b n d] of the image:

    - "pair": `image_embeds`, `text_embeds` [b e], their scaled cosines `logits_per_image` and
      `logits_per_text`, and `multimodal_embeds` [b e] of the text that has read the image
    - "matching": `itm_score` [b 2] and `question_embeds` [b t d] of the text that has read the
      image, and `similarity` [b b] of image and text each by itself
    - "answer": `question_embeds`, and the scores `logits` [b s v] of each next word of the target
      from the text that has read the image
    - "caption": `logits` from the image alone

    The last two also write by themselves: `prepare`, `empty` and `step` are what
    `tasks.generation_model.generate` calls, within `limits`. It writes an answer from every column
    of the question, padding too, as the released code does; in `logits` padding is masked, as it is
    there (transformers 5 loses that mask).
    """

    image_encoder: ViT
    text_encoder: BERT | None = None
    decoder: Decoder | None = None
    task: str = "caption"
    projection: int = 0
    limits: Limits | None = None

    def zeros(self, rows: int = 1) -> dict[str, Any]:
        words = text_zeros(rows)
        target = {"target": words["tokens"], "target_mask": words["text_mask"]}
        return image_zeros(self.image_encoder, rows) | words | target

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]:
        image: Any = self.image_encoder(batch["image"], train=train)
        out = {"last_hidden_state": image}
        if self.text_encoder is not None:
            tokens, mask = batch["tokens"], batch.get("text_mask")
            if self.task in ("pair", "matching"):
                alone: Any = self.text_encoder(tokens, mask, train=train)
            read: Any = self.text_encoder(tokens, mask, context=image, train=train)
        if self.task == "pair":
            return out | self._pair(image, alone, read)
        if self.task == "matching":
            image_vector = unit(self._dense("image_projection", self.projection)(image[:, 0]))
            text_vector = unit(self._dense("text_projection", self.projection)(alone[:, 0]))
            return out | {
                "itm_score": self._dense("matching_head", 2)(read[:, 0]),
                "question_embeds": read,
                "similarity": image_vector @ text_vector.T,
            }
        assert self.decoder is not None
        if self.task == "answer":
            out["question_embeds"] = read
        memory, memory_mask = (read, mask) if self.task == "answer" else (image, None)
        out["logits"] = self.decoder(
            batch["target"],
            memory,
            tokens_mask=batch.get("target_mask"),
            memory_mask=memory_mask,
            train=train,
        )
        return out

    def _pair(
        self, image: Float[Array, "b n d"], text: Float[Array, "b t j"], read: Float[Array, "b t j"]
    ) -> dict[str, Array]:
        encoder, words = self.image_encoder, self.text_encoder
        assert words is not None
        # transformers puts the first token through the last norm a second time.
        again = LayerNorm(**encoder.layer.norm, parent=None)
        first = again.apply({"params": encoder.variables["params"]["norm"]}, image[:, 0])
        project = self._dense("text_projection", self.projection, use_bias=False)
        image_vector = unit(self._dense("image_projection", self.projection, use_bias=False)(first))
        text_vector = unit(project(words.pool(text)))
        start = nn.initializers.constant(2.6592)
        scale = jnp.exp(self.param("logit_scale", start, (), words.layer.param_dtype))
        logits = text_vector @ image_vector.T * scale.astype(text_vector.dtype)
        return {
            "image_embeds": image_vector,
            "text_embeds": text_vector,
            "logits_per_text": logits,
            "logits_per_image": logits.T,
            "multimodal_embeds": project(words.pool(read)),
        }

    def _dense(self, name: str, width: int, use_bias: bool = True) -> nn.Dense:
        encoder = self.image_encoder
        dtypes = encoder.dtypes
        return nn.Dense(width, use_bias=use_bias, name=name, **dtypes)

    def prepare(self, batch: Mapping[str, Any]) -> Context:
        """What every step of the decoder looks at, computed once."""
        assert self.decoder is not None
        memory: Any = self.image_encoder(batch["image"], train=False)
        if self.text_encoder is not None:
            mask = batch.get("text_mask")
            memory = self.text_encoder(batch["tokens"], mask, context=memory, train=False)
        return self.decoder.prepare(memory)

    def empty(self, rows: int, length: int) -> Any:
        """A cache for `rows` texts of up to `length` tokens."""
        assert self.decoder is not None
        return self.decoder.empty(rows, length)

    def step(
        self, context: Context, cache: Any, token: Int[Array, "r"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "r v"], Any]:
        """Scores of the token after `position`, and the cache with the one that is there."""
        assert self.decoder is not None
        return self.decoder.step(context, cache, token, position)


def build(**fields: Any) -> BlipFamily:
    """A `BlipFamily`; its parts are keywords of vit, bert, `Decoder` and `Limits`."""
    return BlipFamily(
        **built(
            fields,
            image_encoder=build_image,
            text_encoder=build_text,
            decoder=build_decoder,
            limits=Limits,
        )
    )
