"""Numerical functions that all rooms share."""

import jax
import jax.numpy as jnp
import numpy as np

from mmflax.numerics import unit


def test_unit_has_length_one_and_a_zero_row_stays():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [-1e-5, 0.0]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
    assert unit(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_unit_of_zero_has_a_finite_gradient():
    grad = jax.grad(lambda x: unit(x).sum())(jnp.asarray([[0.0, 0.0], [3.0, 4.0]]))
    assert np.isfinite(grad).all()
    np.testing.assert_allclose(grad[1], [0.032, -0.024], rtol=1e-5)  # (1 - u . 1 u) / 5
