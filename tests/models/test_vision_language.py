"""The whole model: padding, absent modalities, precision, and its recorded list of parameters."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert
from mmflax.models.vision_language import kept_modalities

N = 5  # image tokens, CLS included


def test_padding_never_changes_an_answer(tiny):
    expected = tiny.run(tiny.params, tiny.inputs)
    mask = tiny.inputs["text_mask"]
    garbage = {**tiny.inputs, "tokens": jnp.where(mask, tiny.inputs["tokens"], 12345)}
    longer = {
        **tiny.inputs,
        "tokens": jnp.pad(tiny.inputs["tokens"], ((0, 0), (0, 3)), constant_values=7),
        "text_mask": jnp.pad(mask, ((0, 0), (0, 3))),
    }
    for inputs in (garbage, longer):
        found = tiny.run(tiny.params, inputs)
        np.testing.assert_allclose(found.pooled, expected.pooled, atol=1e-5)
        np.testing.assert_allclose(found.image, expected.image, atol=1e-5)
        np.testing.assert_allclose(found.text[inputs["text_mask"]], expected.text[mask], atol=1e-5)


def test_what_comes_back(tiny):
    found = tiny.run(tiny.params, tiny.inputs)
    assert found.image.shape == (3, N, 16) and found.text.shape == (3, 6, 16)
    assert found.pooled.shape == (3, 32 if tiny.form == "meter" else 16)
    np.testing.assert_array_equal(found.image_mask, np.ones((3, N), bool))
    np.testing.assert_array_equal(found.text_mask, tiny.inputs["text_mask"])


def test_an_all_true_image_mask_is_no_mask(tiny):
    masked = {**tiny.inputs, "image_mask": jnp.ones((3, N), bool)}
    np.testing.assert_allclose(
        tiny.run(tiny.params, masked).pooled,
        tiny.run(tiny.params, tiny.inputs).pooled,
        atol=1e-5,
    )


def test_an_absent_image_never_matters_even_if_it_is_nan(tiny):
    """Row 1 has no image; its pixels change neither values nor any gradient."""

    image_mask = jnp.ones((3, N), bool).at[1].set(False)

    def answer(params, image):
        inputs = {**tiny.inputs, "image": image, "image_mask": image_mask}
        encoded = tiny.model.apply({"params": params}, **inputs, train=False)
        return (encoded.pooled**2).sum() + (encoded.text**3).sum()

    value_and_grads = jax.jit(jax.value_and_grad(answer, argnums=(0, 1)))
    image = tiny.inputs["image"]
    value, grads = value_and_grads(tiny.params, image)
    assert (grads[1][1] == 0).all() and (grads[1][0] != 0).any()
    again, regrads = value_and_grads(tiny.params, image.at[1].set(jnp.nan))
    np.testing.assert_array_equal(value, again)
    jax.tree.map(np.testing.assert_array_equal, regrads, grads)


def test_an_absent_text_leaks_nothing_and_stays_finite(tiny):
    absent = {**tiny.inputs, "text_mask": jnp.zeros((3, 6), bool)}
    found = tiny.run(tiny.params, absent)
    other = tiny.run(tiny.params, {**absent, "tokens": absent["tokens"] + 1})
    assert jnp.isfinite(found.pooled).all()
    np.testing.assert_array_equal(found.pooled, other.pooled)
    seen = tiny.run(tiny.params, tiny.inputs)
    assert jnp.abs(found.pooled - seen.pooled).max() > 1e-3


def test_image_and_question_both_matter(tiny):
    expected = tiny.run(tiny.params, tiny.inputs).pooled
    for name, change in (("image", 0.5), ("tokens", -1)):
        changed = {**tiny.inputs, name: tiny.inputs[name] + change}
        assert (jnp.abs(tiny.run(tiny.params, changed).pooled - expected).max(1) > 1e-4).all()


def test_image_mask_of_another_length_is_refused(tiny):
    with pytest.raises(MmflaxError, match="4 columns.*5 tokens"):
        tiny.run(tiny.params, {**tiny.inputs, "image_mask": jnp.ones((3, 4), bool)})


def test_half_precision_with_full_precision_parameters(zoo):
    model = zoo.model(dtype="bfloat16", scan_layers=True, remat="dots", dropout_rate=0.1)
    inputs = zoo.inputs()
    params = zoo.params(model, **inputs, train=False)

    def loss(params):
        encoded = model.apply(
            {"params": params}, **inputs, train=True, rngs={"dropout": jax.random.key(0)}
        )
        return (encoded.pooled.astype(jnp.float32) ** 2).sum(), encoded

    grads, encoded = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert encoded.pooled.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("form", ["meter", "lxmert"])
def test_parameters_are_the_recorded_ones(form, zoo):
    """Names and shapes are what checkpoints hold. To record anew: RECORD_GOLDEN=1 pytest <file>."""
    params = zoo.params(zoo.model(form=form), **zoo.inputs(), train=False)
    found = "".join(
        f"{'/'.join(key.key for key in path)} {tuple(leaf.shape)} {leaf.dtype}\n"
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    )
    golden = Path(__file__).parents[1] / "golden" / f"parameters_{form}.txt"
    if os.environ.get("RECORD_GOLDEN"):
        golden.write_text(found)
    assert found == golden.read_text(), (
        f"parameters changed; if meant to, record {golden.name} anew"
    )


def test_words_are_the_text_encoders_own(tiny, zoo):
    """Tokens of the text alone: another image does not change them."""
    found = tiny.run(tiny.params, tiny.inputs)
    inputs = {name: tiny.inputs[name] for name in ("tokens", "text_mask")}
    alone = zoo.run(tiny.model.text_encoder, tiny.params["text_encoder"], **inputs, train=False)
    np.testing.assert_allclose(found.text_tokens, alone, atol=1e-5)
    other = tiny.run(tiny.params, {**tiny.inputs, "image": tiny.inputs["image"] + 1.0})
    np.testing.assert_array_equal(found.text_tokens, other.text_tokens)


def test_an_absent_text_gives_the_same_words_whatever_it_was(zoo):
    """Neither tokens nor token types of a masked column pass through BERT."""
    model, tokens = (
        bert.build(vocab_size=30, width=16, depth=2, num_heads=4),
        zoo.inputs()["tokens"],
    )
    params = zoo.params(model, tokens, train=False)
    mask = jnp.zeros(tokens.shape, bool).at[0].set(True)
    types = jnp.zeros_like(tokens)
    found = zoo.run(model, params, tokens, mask, types, train=False)
    other = zoo.run(model, params, tokens + 1, mask, types + 1, train=False)
    np.testing.assert_array_equal(found[1:], other[1:])
    np.testing.assert_array_equal(found[1], found[2])
    assert (found[0] != other[0]).any()


def test_modality_dropout_keeps_one_and_drops_at_its_rate():
    image = jnp.ones(40_000, bool).at[:10_000].set(False)
    text = jnp.ones(40_000, bool).at[-10_000:].set(False)
    seen, said = (np.asarray(kept) for kept in kept_modalities(jax.random.key(0), image, text, 0.3))
    np.testing.assert_array_equal(seen | said, image | text)  # never both, never the only one
    np.testing.assert_array_equal(seen & ~image, False)
    np.testing.assert_array_equal(said & ~text, False)
    both = np.asarray(image & text)
    assert (seen & said)[~both].sum() == 0 and (seen ^ said)[~both].all()
    assert abs((~seen)[both].mean() - 0.15) < 0.01 and abs((~said)[both].mean() - 0.15) < 0.01
    assert not (~seen & ~said)[both].any()


def test_modality_dropout_is_absence_and_of_training_alone(zoo):
    """What is dropped is dropped as if it had not come: masks, values and gradients."""
    inputs = zoo.inputs(batch=12, length=14)
    inputs["text_mask"] = inputs["text_mask"].at[0].set(False)
    inputs["image_mask"] = jnp.ones((12, N), bool).at[1].set(False)
    plain = zoo.model()
    model = plain.copy(modality_dropout=0.9)
    params = zoo.params(plain, **inputs, train=False)
    run = jax.jit(lambda inputs: plain.apply({"params": params}, **inputs, train=False))

    @jax.jit
    def train(inputs, image, key):
        def loss(image):
            encoded = model.apply(
                {"params": params},
                **{**inputs, "image": image},
                train=True,
                rngs={"dropout": key},
            )
            return (encoded.pooled**2).sum() + (encoded.image_tokens**2).sum(), encoded

        return jax.grad(loss, has_aux=True)(image)

    grads, trained = train(inputs, inputs["image"], jax.random.key(1))
    seen, said = trained.image_mask.any(axis=1), trained.text_mask.any(axis=1)
    assert (seen | said).all() and not seen[2:].all() and not said[2:].all()
    assert said[1] and seen[0]
    absent = {**inputs, "image_mask": trained.image_mask, "text_mask": trained.text_mask}
    expected = run(absent)
    np.testing.assert_allclose(trained.pooled, expected.pooled, atol=1e-5)
    np.testing.assert_allclose(trained.image_tokens, expected.image_tokens, atol=1e-5)
    np.testing.assert_array_equal((grads != 0).any(axis=(1, 2, 3)), seen)
    again = train(inputs, inputs["image"], jax.random.key(2))[1]
    assert (again.image_mask.any(axis=1) != seen).any()
    same = jax.jit(lambda inputs: model.apply({"params": params}, **inputs, train=False))(inputs)
    np.testing.assert_array_equal(same.pooled, run(inputs).pooled)


def test_modality_dropout_without_an_image_mask(zoo):
    inputs = zoo.inputs(batch=12, length=14)
    model = zoo.model().copy(modality_dropout=0.9)
    params = zoo.params(model, **inputs, train=False)
    encoded = zoo.run(model, params, **inputs, train=True, key=0)
    seen = encoded.image_mask.any(axis=1)
    np.testing.assert_array_equal(encoded.image_mask, jnp.broadcast_to(seen[:, None], (12, N)))
    assert 0 < seen.sum() < 12


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_modality_dropout_must_leave_something(zoo, rate):
    with pytest.raises(MmflaxError, match="modality_dropout is"):
        zoo.model().copy(modality_dropout=rate)
