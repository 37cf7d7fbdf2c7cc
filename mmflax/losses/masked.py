"""Masked modeling: hidden words, patches and regions are predicted from the rest."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key


def mask_words(
    key: Key[Array, ""],
    tokens: Int[Array, "b t"],
    text_mask: Bool[Array, "b t"],
    *,
    vocab_size: int,
    mask_id: int,
    special_ids: Sequence[int],
    continuation: Sequence[bool] | None = None,
    rate: float = 0.15,
) -> tuple[Int[Array, "b t"], Bool[Array, "b t"]]:
    """BERT's masking (Devlin et al. 2019, sec. 3.1): the text with words hidden, and where.

    `rate` of the tokens is chosen, at least one of a text that has any; of those 80 % become
    [MASK], 10 % another word, 10 % stay. Special tokens are neither chosen nor put in. With
    `continuation` (true for pieces that go on with the word before) whole words are chosen, the
    "whole word masking" of BERT's released code; rate then counts words. Every text draws by itself
    from (key, its row).
    """
    special = np.zeros(vocab_size, bool)
    special[list(special_ids)] = True
    ordinary = jnp.asarray(np.flatnonzero(~special), jnp.int32)
    choose_key, kind_key, word_key = jax.random.split(key, 3)
    inside = jnp.clip(tokens, 0, vocab_size - 1)  # padding may hold anything
    maskable = text_mask & ~jnp.asarray(special)[inside]
    draw = jax.random.uniform(choose_key, tokens.shape)
    if continuation is not None:
        goes_on = jnp.asarray(np.asarray(continuation, bool))[inside]
        # All pieces of a word take the draw of the word's number in the text.
        number = jnp.cumsum(~goes_on, axis=1, dtype=jnp.int32) - 1
        draw = jnp.take_along_axis(draw, jnp.maximum(number, 0), axis=1)
    least = jnp.where(maskable, draw, 2.0).min(axis=1, keepdims=True)
    chosen = maskable & ((draw < rate) | (draw == least))
    kind = jax.random.uniform(kind_key, tokens.shape)
    other = ordinary[jax.random.randint(word_key, tokens.shape, 0, ordinary.shape[0])]
    hidden = jnp.where(kind < 0.8, jnp.full_like(tokens, mask_id), tokens)
    hidden = jnp.where(kind >= 0.9, other.astype(tokens.dtype), hidden)
    return jnp.where(chosen, hidden, tokens), chosen


def patchify(image: Float[Array, "b h w c"], grid: tuple[int, int]) -> Float[Array, "b p q"]:
    """The pixels of each cell of a `grid` (rows, columns): p = rows * columns, row by row."""
    b, height, width, channels = image.shape
    rows, columns = grid
    x = image.reshape(b, rows, height // rows, columns, width // columns, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)


def unpatchify(
    patches: Float[Array, "b p q"], grid: tuple[int, int], size: tuple[int, int]
) -> Float[Array, "b h w c"]:
    """The inverse of `patchify`, for images of `size` (h, w)."""
    (rows, columns), (height, width) = grid, size
    x = patches.reshape(patches.shape[0], rows, columns, height // rows, width // columns, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(patches.shape[0], height, width, -1)


def choose_positions(
    key: Key[Array, ""], shape: tuple[int, int], ratio: float
) -> Bool[Array, "b p"]:
    """The same number of positions in each row, `ratio` of them (at least one), without repeats.

    Random masking by shuffling (He et al. 2022, "MAE", sec. 3).
    """
    rank = jnp.argsort(jnp.argsort(jax.random.uniform(key, shape), axis=1), axis=1)
    return rank < max(1, round(ratio * shape[1]))


def masked_patch_loss(
    predicted: Float[Array, "b p q"],
    pixels: Float[Array, "b p q"],
    chosen: Bool[Array, "b p"],
    *,
    norm: str = "l2",
    normalize: bool = True,
) -> Float[Array, "b"]:
    """Error of the hidden patches' pixels, mean over pixels and patches; 0 if none is hidden.

    "l2" with `normalize` (each patch's own mean and deviation taken out) is MAE (He et al. 2022,
    sec. 3, "Reconstruction target"); "l1" without is SimMIM (Xie et al. 2022, sec. 3.4).
    """
    pixels, predicted = pixels.astype(jnp.float32), predicted.astype(jnp.float32)
    if normalize:
        mean = pixels.mean(axis=-1, keepdims=True)
        variance = jnp.square(pixels - mean).mean(axis=-1, keepdims=True)
        pixels = (pixels - mean) * jax.lax.rsqrt(variance + 1e-6)
    error = predicted - pixels
    error = jnp.abs(error) if norm == "l1" else jnp.square(error)
    return mean_over(error.mean(axis=-1), chosen)


def masked_feature_loss(
    predicted: Float[Array, "b r f"], features: Float[Array, "b r f"], chosen: Bool[Array, "b r"]
) -> Float[Array, "b"]:
    """Squared distance of the hidden regions' features, mean over regions; 0 if none is hidden.

    Masked region feature regression: UNITER (Chen et al. 2020, sec. 3.2, "MRFR"); LXMERT (Tan &
    Bansal 2019, sec. 3.1.2, "RoI-feature regression").
    """
    error = predicted.astype(jnp.float32) - features.astype(jnp.float32)
    return mean_over(jnp.square(error).sum(axis=-1), chosen)


def masked_region_kl(
    logits: Float[Array, "b r c"], scores: Float[Array, "b r c"], chosen: Bool[Array, "b r"]
) -> Float[Array, "b"]:
    """KL(detector's class scores || predicted), mean over hidden regions; 0 if none is hidden.

    UNITER (Chen et al. 2020, sec. 3.2, "MRC-kl"); with one-hot scores it is LXMERT's detected-label
    classification. `scores` are probabilities.
    """
    scores = scores.astype(jnp.float32)
    log_q = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    log_p = jnp.log(jnp.where(scores > 0, scores, 1.0))
    return mean_over((scores * (log_p - log_q)).sum(axis=-1), chosen)


def mean_over(values: Float[Array, "b s"], mask: Bool[Array, "b s"]) -> Float[Array, "b"]:
    """Mean of each row's values under a true mask; 0 where there is none."""
    count = jnp.maximum(mask.sum(axis=1, dtype=jnp.int32), 1).astype(values.dtype)
    return jnp.where(mask, values, jnp.zeros_like(values)).sum(axis=1) / count
