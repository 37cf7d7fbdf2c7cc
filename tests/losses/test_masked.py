"""Masked modelling: what is hidden, and the losses against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.losses import generation, masked

VOCAB, MASK_ID, SPECIAL = 40, 4, (0, 2, 3, 4)
# Odd ids from 21 on continue a word.
CONTINUATION = tuple(i > 20 and i % 2 == 1 for i in range(VOCAB))


def texts(rows=400, length=24, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, VOCAB, (rows, length)).astype(np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    used = np.arange(length) < rng.integers(2, length + 1, (rows, 1))
    tokens[~used] = 17  # a padded place may hold any word
    return jnp.asarray(tokens), jnp.asarray(used)


def hide(tokens, used, key=0, **fields):
    fields = dict(vocab_size=VOCAB, mask_id=MASK_ID, special_ids=SPECIAL) | fields
    draw = jax.jit(lambda key: masked.mask_words(key, tokens, used, **fields))
    return tuple(np.asarray(x) for x in draw(jax.random.key(key)))


def test_masking_is_80_10_10_of_15_percent():
    """Devlin et al. 2019, sec. 3.1."""
    tokens, _ = texts(rows=600, length=60)
    used = jnp.ones(tokens.shape, bool)
    hidden, chosen = hide(tokens, used)
    tokens = np.asarray(tokens)
    ordinary = ~np.isin(tokens, SPECIAL)
    assert abs(chosen.sum() / ordinary.sum() - 0.15) < 0.01
    masked_share = (hidden[chosen] == MASK_ID).mean()
    kept = (hidden[chosen] == tokens[chosen]).mean()
    assert abs(masked_share - 0.8) < 0.02
    assert abs(kept - (0.1 + 0.1 / 36)) < 0.02  # 36 ordinary words: some draws hit the same word
    np.testing.assert_array_equal(hidden[~chosen], tokens[~chosen])


@pytest.mark.parametrize("whole", [None, CONTINUATION])
def test_specials_and_padding_are_never_touched_and_a_word_always_is(whole):
    tokens, used = texts()
    hidden, chosen = hide(tokens, used, rate=0.3, continuation=whole)
    tokens, used = np.asarray(tokens), np.asarray(used)
    assert not chosen[np.isin(tokens, SPECIAL) | ~used].any()
    assert not np.isin(hidden[chosen], [s for s in SPECIAL if s != MASK_ID]).any()
    has_words = (used & ~np.isin(tokens, SPECIAL)).any(1)
    np.testing.assert_array_equal(chosen.any(1), has_words)


def test_whole_words_are_chosen_together():
    tokens, used = texts()
    used = jnp.ones_like(used)
    _, chosen = hide(tokens, used, rate=0.3, continuation=CONTINUATION)
    _, pieces = hide(tokens, used, rate=0.3)
    goes_on = np.asarray(CONTINUATION)[np.asarray(tokens)]
    goes_on[:, :2] = False  # what follows [CLS] starts a word whatever it is
    assert (chosen[:, 1:] == chosen[:, :-1])[goes_on[:, 1:]].all()
    assert not (pieces[:, 1:] == pieces[:, :-1])[goes_on[:, 1:]].all()
    starts = ~goes_on & ~np.isin(tokens, SPECIAL)
    assert abs(chosen[starts].mean() - 0.3) < 0.02


def test_same_key_same_words():
    tokens, used = texts()
    first, second, other = hide(tokens, used), hide(tokens, used), hide(tokens, used, key=1)
    np.testing.assert_array_equal(first[0], second[0])
    assert (first[1] != other[1]).any()


def test_masked_word_loss_is_mean_of_minus_log_p():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    tokens, chosen = np.array([[1, 4, 2], [0, 1, 2]], np.int32), np.zeros((2, 3), bool)
    chosen[0, [0, 2]] = True
    found = generation.next_word_loss(jnp.asarray(logits), jnp.asarray(tokens), jnp.asarray(chosen))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, [-(np.log(p[0, 0, 1]) + np.log(p[0, 2, 2])) / 2, 0], 1e-5)


def test_patches_come_apart_row_by_row_and_together_again():
    image = jnp.arange(2 * 4 * 6 * 3, dtype=jnp.float32).reshape(2, 4, 6, 3)
    patches = masked.patchify(image, (2, 3))
    assert patches.shape == (2, 6, 12)
    np.testing.assert_array_equal(patches[0, 1].reshape(2, 2, 3), image[0, :2, 2:4])
    np.testing.assert_array_equal(masked.unpatchify(patches, (2, 3), (4, 6)), image)


def test_the_same_number_of_patches_is_hidden_in_every_row():
    chosen = np.asarray(masked.choose_positions(jax.random.key(0), (500, 16), 0.75))
    np.testing.assert_array_equal(chosen.sum(1), 12)
    np.testing.assert_allclose(chosen.mean(0), 0.75, atol=0.08)
    assert masked.choose_positions(jax.random.key(0), (1, 3), 0.01).sum() == 1


def test_masked_patch_losses():
    rng = np.random.default_rng(0)
    pixels, predicted = rng.normal(3, 2, size=(2, 2, 4, 6)).astype(np.float32)
    chosen = np.array([[1, 0, 1, 0], [0, 0, 0, 0]], bool)
    given = tuple(jnp.asarray(x) for x in (predicted, pixels, chosen))
    # MAE: each patch normalized by its own mean and variance.
    norm = (pixels - pixels.mean(-1, keepdims=True)) / np.sqrt(pixels.var(-1, keepdims=True) + 1e-6)
    wanted = np.square(predicted - norm).mean(-1)[0, [0, 2]].mean()
    np.testing.assert_allclose(masked.masked_patch_loss(*given), [wanted, 0], rtol=1e-5)
    # SimMIM, sec. 3.4: |y - x|_1 / number of hidden pixels.
    wanted = np.abs(predicted - pixels)[0, [0, 2]].sum() / 12
    found = masked.masked_patch_loss(*given, norm="l1", normalize=False)
    np.testing.assert_allclose(found, [wanted, 0], rtol=1e-5)


def test_masked_region_losses():
    rng = np.random.default_rng(0)
    predicted, features = rng.normal(size=(2, 2, 3, 4)).astype(np.float32)
    chosen = np.array([[1, 0, 1], [0, 0, 0]], bool)
    found = masked.masked_feature_loss(*(jnp.asarray(x) for x in (predicted, features, chosen)))
    wanted = np.square(predicted - features).sum(-1)[0, [0, 2]].mean()  # UNITER, MRFR
    np.testing.assert_allclose(found, [wanted, 0], rtol=1e-5)
    p = np.exp(features) / np.exp(features).sum(-1, keepdims=True)
    p[0, 0] = [1, 0, 0, 0]  # one-hot: the logarithm of 0 must not show
    q = np.exp(predicted) / np.exp(predicted).sum(-1, keepdims=True)
    kl = np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0).sum(-1)  # UNITER, MRC-kl
    found = masked.masked_region_kl(*(jnp.asarray(x) for x in (predicted, p, chosen)))
    np.testing.assert_allclose(found, [kl[0, [0, 2]].mean(), 0], rtol=1e-5)
