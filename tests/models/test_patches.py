"""ViLT's patches: what padding pixels do, and where positions go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.models.encoders import patches

ENCODER = patches.build(width=8, patch_size=4, image_size=12)


@pytest.fixture(scope="module")
def params():
    image = jnp.zeros((1, 12, 12, 3))
    shapes = jax.eval_shape(lambda: ENCODER.init(jax.random.key(0), image, train=False))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), shapes)


def inputs(*parts, size=(12, 16)):
    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.normal(size=(len(parts), *size, 3)), jnp.float32)
    mask = np.zeros((len(parts), *size), bool)
    for row, (down, across) in zip(mask, parts, strict=True):
        row[:down, :across] = True
    return image, jnp.asarray(mask)


def run(params, image, mask=None):
    return ENCODER.apply({"params": params}, image, mask, train=False)


def test_a_mask_of_everything_is_no_mask(params):
    image, mask = inputs((12, 16), (12, 16))
    np.testing.assert_allclose(run(params, image, mask), run(params, image), atol=1e-6)
    assert ENCODER.token_mask(mask).all()


def test_an_image_with_padding_is_the_image_alone(params):
    """The tokens of the true part, positions included, do not depend on what surrounds it."""
    image, mask = inputs((8, 12))
    tokens, used = run(params, image, mask), ENCODER.token_mask(mask)
    alone = run(params, image[:, :8, :12])
    np.testing.assert_allclose(tokens[used], alone.reshape(-1, 8), atol=1e-6)
    assert used.sum() == alone.shape[1] == ENCODER.num_tokens((8, 12))
    louder = jnp.where(mask[..., None], image, 100.0)
    np.testing.assert_array_equal(run(params, louder, mask)[used], tokens[used])


def test_positions_meet_the_table_at_its_size_and_its_corners(params):
    table = params["position_embedding"][1:].reshape(3, 3, 8)

    def counts(*numbers):
        return tuple(jnp.full((1,), number) for number in numbers)

    np.testing.assert_allclose(patches.spread(table, counts(3, 3), (3, 3))[0], table, atol=1e-6)
    wide = patches.spread(table, counts(5, 7), (5, 7))[0]
    np.testing.assert_allclose(wide[::4, ::6], table[::2, ::2], atol=1e-6)
    np.testing.assert_allclose(wide[2, 3], table[1, 1], atol=1e-6)


def test_an_absent_image_uses_no_token_and_stays_finite(params):
    image, mask = inputs((0, 0), (12, 16))
    assert np.isfinite(run(params, image, mask)).all()
    assert not ENCODER.token_mask(mask)[0].any()
