"""The whole model: padding, absent modalities, precision, and its recorded list of parameters."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError

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
