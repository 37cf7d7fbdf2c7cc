"""Regions as an image: tokens, padding, absence, and what tasks make of a batch that has them.

That every form computes the published numbers is held in tests/parity/.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, regions, vit
from mmflax.models.fusion import co_attention
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import inputs as task_inputs

ROWS, N, FEATURES, T = 3, 5, 6, 4
QUICK = {"xla_backend_optimization_level": 0}


def detected(seed=0):
    """Features and boxes, side by side."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(ROWS, N, FEATURES))
    corners = np.sort(rng.random((ROWS, N, 2, 2)), axis=2).reshape(ROWS, N, 4)
    return jnp.asarray(np.concatenate([features, corners], axis=-1), jnp.float32)


def encoder(form="lxmert", **fields):
    sizes = dict(width=8, num_heads=2, feature_dim=FEATURES, num_regions=N, depth=1)
    return regions.build(form=form, **{**sizes, **fields})


@pytest.mark.parametrize("form", regions.FORMS)
def test_padding_never_matters_and_every_region_is_a_token(zoo, form):
    module, image = encoder(form), detected()
    mask = jnp.ones((ROWS, N), bool).at[1, 3:].set(False).at[2].set(False)
    params = zoo.params(module, image, mask, train=False)

    def total(params, image):
        tokens = module.apply({"params": params}, image, mask, train=False)
        return jnp.where(mask[..., None], jnp.sin(tokens), 0.0).sum(), tokens

    run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), compiler_options=QUICK)
    (value, tokens), grads = run(params, image)
    assert tokens.shape == (ROWS, module.num_tokens(), 8)
    (other, _), regrads = run(params, jnp.where(mask[..., None], image, jnp.nan))
    np.testing.assert_array_equal(value, other)
    jax.tree.map(np.testing.assert_array_equal, regrads, grads)
    reads_box = regions.FORMS[form].numbers is not None
    seen = np.zeros((ROWS, N, FEATURES + 4), bool)
    seen[..., :FEATURES], seen[..., FEATURES:] = True, reads_box
    np.testing.assert_array_equal(grads[1] != 0, seen & np.asarray(mask)[..., None])


def test_a_hidden_region_is_told_from_a_plain_one(zoo):
    module, image = encoder("uniter", mask_embedding=True, depth=0), detected()
    hidden = jnp.zeros((ROWS, N), bool).at[0, 1].set(True)
    params = zoo.params(module, image, train=False)
    plain, masked = (zoo.run(module, params, image, masked=x, train=False) for x in (None, hidden))
    np.testing.assert_array_equal((plain != masked).any(axis=-1), hidden)


def test_what_does_not_fit_is_said():
    with pytest.raises(MmflaxError, match="10 numbers a region; expected 7 features and the 4"):
        encoder(feature_dim=7).init(jax.random.key(0), detected(), train=False)
    with pytest.raises(MmflaxError, match="form is 'bert'; expected one of lxmert, uniter"):
        encoder("bert").init(jax.random.key(0), detected(), train=False)
    with pytest.raises(MmflaxError, match="no grid"):
        encoder().grid()


@pytest.fixture(scope="module")
def whole(zoo):
    """LXMERT's parts in a `VisionLanguageModel`, and a batch."""
    sizes = dict(width=8, num_heads=2, mlp_dim=16)
    model = VisionLanguageModel(
        encoder(mlp_dim=16),
        bert.build(vocab_size=20, depth=1, **sizes),
        co_attention.build(form="lxmert", depth=1, **sizes),
    )
    image, rng = detected(), np.random.default_rng(1)
    batch = {
        "regions": image[..., :FEATURES],
        "boxes": image[..., FEATURES:],
        "tokens": jnp.asarray(rng.integers(1, 20, (ROWS, T)), jnp.int32),
        "text_mask": jnp.ones((ROWS, T), bool),
    }
    params = zoo.params(model, image, batch["tokens"], batch["text_mask"], train=False)

    def encode(params, batch):
        def read(model, batch):
            return task_inputs.encode(model, batch, train=False)

        return model.apply({"params": params}, batch, method=read)

    run = jax.jit(encode, compiler_options=QUICK)
    return SimpleNamespace(model=model, params=params, batch=batch, run=run)


def test_tasks_join_regions_and_boxes_and_leave_out_what_the_mask_hides(whole):
    plain = whole.run(whole.params, whole.batch)
    assert plain.image.shape == (ROWS, N, 8)
    moved = whole.run(whole.params, {**whole.batch, "boxes": whole.batch["boxes"] * 0.5})
    assert (jnp.abs(moved.pooled - plain.pooled) > 1e-4).any()
    mask = jnp.ones((ROWS, N), bool).at[1, 3:].set(False).at[2].set(False)
    masked = {**whole.batch, "region_mask": mask}
    found = whole.run(whole.params, masked)
    np.testing.assert_array_equal(found.image_mask, mask)
    hidden = {key: jnp.where(mask[..., None], masked[key], jnp.nan) for key in ("regions", "boxes")}
    again = whole.run(whole.params, {**masked, **hidden})
    np.testing.assert_array_equal(again.pooled, found.pooled)
    # Hidden regions have not met the others inside the encoder either.
    fewer = {key: x[:, :3] for key, x in masked.items() if key.startswith(("region", "box"))}
    short = whole.run(whole.params, {**masked, **fewer})
    np.testing.assert_allclose(short.pooled[1], found.pooled[1], atol=1e-5)


def test_an_absent_image_of_regions_leaks_nothing(whole):
    """By `image_present` too, which says nothing of single regions."""
    for absent in (
        {"region_mask": jnp.ones((ROWS, N), bool).at[1].set(False)},
        {"image_present": jnp.ones(ROWS, bool).at[1].set(False)},
    ):
        batch = {**whole.batch, **absent}
        found = whole.run(whole.params, batch)
        other = whole.run(whole.params, {**batch, "regions": batch["regions"].at[1].set(jnp.nan)})
        np.testing.assert_array_equal(found.pooled, other.pooled)
        assert jnp.isfinite(found.pooled).all()


def test_a_batch_without_regions_is_named(whole):
    with pytest.raises(MmflaxError, match="needs 'regions', which the batch does not hold"):
        task_inputs.picture(whole.model, {"image": jnp.ones((1, 8, 8, 3))})
    pixels = whole.model.clone(
        image_encoder=vit.build(
            image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=16
        )
    )
    image = jnp.ones((1, 8, 8, 3))
    assert task_inputs.picture(pixels, {"image": image, "regions": detected()}) is image
