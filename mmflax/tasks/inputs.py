"""What tasks share: from a batch to the backbone's output, and the loss of caption words.

The keys that hold an image and those that mark it absent are read here only; `mmflax.batch_keys`
lists them.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.batch_keys import SECOND, TEXT_KEYS, require, select
from mmflax.losses import word_region_loss
from mmflax.models.encoders.regions import join_regions
from mmflax.models.vision_language import Encoded
from mmflax.tasks.task import Batch, Outputs

# Of the hash of a text: Knuth's multiplier (The Art of Computer Programming, vol. 3, sec. 6.4), and
# that of the linear congruential generator in Numerical Recipes.
_MIX, _ODD = 2654435761, 1664525


def encode(
    backbone: nn.Module, batch: Batch, *, image_type: Int[Array, "b"] | None = None, train: bool
) -> Encoded:
    """The backbone's output; `image_type` is each image's row of the fusion's types."""
    kind = {} if image_type is None else {"image_type": image_type}
    return backbone(
        picture(backbone, batch),
        batch["tokens"],
        batch["text_mask"],
        image_mask(backbone, batch),
        **kind,
        train=train,
    )


def of_regions(backbone: nn.Module) -> bool:
    """Whether its image encoder reads regions, not pixels."""
    return backbone.image_encoder.reads_regions


def picture(backbone: nn.Module, batch: Batch) -> Float[Array, "b ..."]:
    """What the image encoder reads: `image` [b h w 3], or `regions` and `boxes` [b r f+4]."""
    who = f"the image encoder {type(backbone.image_encoder).__name__}"
    if not of_regions(backbone):
        return require(batch, "image", who, "use an image encoder of regions")
    regions = require(batch, "regions", who, "use an image encoder of pixels")
    return join_regions(regions, batch.get("boxes"))


def image_mask(backbone: nn.Module, batch: Batch) -> Bool[Array, "b n"] | None:
    """Which of the image encoder's tokens count: those that no mask of the batch leaves out.

    `image_mask` [b n] is over the encoder's tokens; `region_mask` [b r] is one for an encoder of
    regions; else `image_present` [b] holds for all tokens of an image. None where there is none.
    """
    masks = [batch.get("image_mask")]
    if of_regions(backbone) and batch.get("region_mask") is not None:
        masks.append(batch["region_mask"])
    elif batch.get("image_present") is not None:
        present = batch["image_present"]
        tokens = backbone.image_encoder.num_tokens()
        masks.append(jnp.broadcast_to(present[:, None], (present.shape[0], tokens)))
    given = [mask for mask in masks if mask is not None]
    return functools.reduce(jnp.logical_and, given) if given else None


def pair_keys(batch: Batch) -> Int[Array, "b 2"]:
    """A key of each row's image, its `image_key`, and one of its text, a hash of its tokens.

    Rows that share one of them are no negatives of each other: the image or the text is as right in
    either place.
    """
    tokens, mask = batch["tokens"], batch["text_mask"]
    image = batch.get("image_key")
    if image is None:
        image = jnp.arange(tokens.shape[0], dtype=jnp.int32)
    # A polynomial in an odd number, modulo 2^32, of tokens that are mixed first.
    powers = [pow(_ODD, place, 2**32) for place in range(tokens.shape[1])]
    mixed = (tokens.astype(jnp.uint32) + jnp.uint32(1)) * jnp.uint32(_MIX)
    mixed = mixed ^ (mixed >> jnp.uint32(15))
    terms = jnp.where(mask, mixed * jnp.asarray(powers, jnp.uint32)[None], jnp.uint32(0))
    text = jax.lax.bitcast_convert_type(terms.sum(axis=1, dtype=jnp.uint32), jnp.int32)
    return jnp.stack([image.astype(jnp.int32), text], axis=1)


def pair_rows(batch: Batch) -> dict[str, Array]:
    """What a model reads of a batch of pairs, as 2b rows: each example with its first image, then
    with its second.

    One pass over 2b rows compiles once, where two passes compile twice. Neighboring rows belong
    together, so that a batch split over devices stays where it is.
    """
    if "second_regions" not in batch:
        require(batch, "second_image", "A task over two images", "give --config.task.images=1")
    both = select(batch, (*TEXT_KEYS, "image_mask", "image_present"))
    both |= {key: batch[key] for key in batch if SECOND + key in batch}
    return {
        key: jnp.stack([first, batch.get(SECOND + key, first)], axis=1).reshape(
            -1, *first.shape[1:]
        )
        for key, first in both.items()
    }


def grounded(grounding: nn.Module | None, backbone: nn.Module, encoded: Encoded) -> Outputs:
    """`image_mask` [b n], and where there is a `grounding` head `words` [b n v]: how much each
    image token shows each word of the text encoder's own table."""
    outputs: Outputs = {"image_mask": encoded.image_mask}
    if grounding is not None:
        table = backbone.text_encoder.word_embedding.embedding
        outputs["words"] = grounding(encoded.image_tokens, table)
    return outputs


def caption_word_loss(weight: float, outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
    """`weight` times `word_region_loss`; 0 where no image was read, be it absent or dropped."""
    caption = require(batch, "caption", "task.caption_words", "give --config.task.caption_words=0")
    return weight * word_region_loss(
        outputs["words"],
        caption,
        batch["caption_mask"],
        present=outputs["image_mask"].any(axis=1),
    )
