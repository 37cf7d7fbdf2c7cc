"""Image-text matching with negatives from the batch, as a retrieval task and the objective `itm`
train it (ALBEF, Li et al. 2021, sec. 3.2): each pair, its image with a wrong text, and its text
with a wrong image."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from mmflax.losses.masked import mean_over
from mmflax.losses.matching import hard_negatives, matching_loss
from mmflax.metrics.accuracy import Metric


class Negatives(NamedTuple):
    """Which text is the wrong one for each image and which image for each text, as indices within
    a row's group; and which rows `used` [b 3] have the pair and either negative at all."""

    text: Int[Array, "g n"]
    image: Int[Array, "g n"]
    used: Bool[Array, "b 3"]


def draw_negatives(
    key: Key[Array, ""],
    keys: Int[Array, "b ..."] | None,
    used: Bool[Array, "b"],
    group: int,
    image: Float[Array, "b e"] | None = None,
    text: Float[Array, "b e"] | None = None,
    scale: Float[Array, ""] | None = None,
) -> Negatives:
    """A wrong partner for each row, from the rows around it: at most `group` of them, the largest
    number that divides the batch, or with 0 the whole batch.

    Given embeddings, the more similar (times `scale`) the likelier; else uniform. Rows that
    share one of their `keys` are no negatives of each other.
    """
    rows = used.shape[0]
    group = max(size for size in range(1, (group or rows) + 1) if rows % size == 0)
    keys = jnp.arange(rows, dtype=jnp.int32) if keys is None else keys
    if image is None or text is None or scale is None:
        similarity = jnp.zeros((rows // group, group, group), jnp.float32)
    else:
        x, y = _grouped(image, group), _grouped(text, group)
        similarity = jax.lax.stop_gradient(scale * jnp.einsum("gie,gje->gij", x, y))
    places = _grouped(keys, group), _grouped(used, group)
    text_key, image_key = jax.random.split(key)
    other_text, has_text = hard_negatives(text_key, similarity, *places)
    other_image, has_image = hard_negatives(image_key, similarity.swapaxes(1, 2), *places)
    exist = jnp.stack([used, has_text.reshape(-1), has_image.reshape(-1)], axis=1)
    return Negatives(other_text, other_image, exist)


def take_rows(x: Array, index: Int[Array, "g n"]) -> Array:
    """Rows [b …] of `x`, each from its group at `index`."""
    parts = _grouped(x, index.shape[1])
    at = index.reshape(*index.shape, *(1,) * (parts.ndim - 2))
    return jnp.take_along_axis(parts, at, axis=1).reshape(x.shape)


def interleave(*parts: Array) -> Array:
    """[k b …] of k arrays [b …], row by row, so that each device's rows stay its own."""
    return jnp.stack(parts, axis=1).reshape(-1, *parts[0].shape[1:])


def itm_loss(logits: Float[Array, "b 3 2"], used: Bool[Array, "b 3"]) -> Float[Array, "b"]:
    """The mean over the pair and its negatives, of those that there are."""
    each = matching_loss(logits.reshape(-1, 2), _matched(used).reshape(-1))
    return mean_over(each.reshape(used.shape), used)


def itm_accuracy(logits: Float[Array, "b 3 2"], used: Bool[Array, "b 3"]) -> Metric:
    """How many of them are classified correctly."""
    right = used & ((logits[..., 1] > logits[..., 0]) == _matched(used))
    return right.sum(axis=1, dtype=jnp.float32), used.sum(axis=1, dtype=jnp.float32)


def _matched(used: Bool[Array, "b 3"]) -> Bool[Array, "b 3"]:
    return jnp.broadcast_to(jnp.arange(3)[None] == 0, used.shape)


def _grouped(x: Array, group: int) -> Array:
    return x.reshape(-1, group, *x.shape[1:])
