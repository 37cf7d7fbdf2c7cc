"""Losses that bring two modalities' features together: cycle, adversarial, correlation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.losses.adversarial import modality_loss, reverse_gradient
from mmflax.losses.correlation import correlation_loss, total_correlation
from mmflax.losses.cycle import cycle_consistency

RNG = np.random.default_rng(0)


def test_cycle_distances():
    x, back = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    given = jnp.asarray(x), jnp.asarray(back)
    wanted = {
        "l1": np.abs(x - back).mean(-1),  # Zhu et al. 2017, eq. 2, per feature
        "l2": np.square(x - back).mean(-1),
        "cosine": 1
        - (x * back).sum(-1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(back, axis=1)),
    }
    for kind, value in wanted.items():
        np.testing.assert_allclose(cycle_consistency(*given, kind=kind), value, rtol=1e-5)


def test_the_gradient_is_turned_and_scaled():
    """Ganin et al. 2016, eq. 16-17: R(x) = x, dR/dx = -scale."""
    x = jnp.asarray(RNG.normal(size=5), jnp.float32)
    np.testing.assert_array_equal(reverse_gradient(x, 0.3), x)
    found = jax.grad(lambda x: jnp.sin(reverse_gradient(x, 0.3)).sum())(x)
    np.testing.assert_allclose(found, -0.3 * np.cos(x), rtol=1e-6)
    half = jax.grad(lambda x: reverse_gradient(x, 0.3).sum())(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_modality_loss_is_binary_cross_entropy():
    image, text = RNG.normal(size=(2, 3)).astype(np.float32)
    p, q = 1 / (1 + np.exp(-image)), 1 / (1 + np.exp(-text))
    wanted = -(np.log(p) + np.log(1 - q)) / 2  # Ganin et al. 2016, below eq. 7, both domains
    np.testing.assert_allclose(modality_loss(*map(jnp.asarray, (image, text))), wanted, rtol=1e-5)
    kept = modality_loss(*map(jnp.asarray, (image, text)), jnp.asarray([True, False, True]))
    np.testing.assert_allclose(kept, wanted * [1, 0, 1], rtol=1e-5)


def by_definition(x, y, r=1e-3):
    """Andrew et al. 2013, sec. 3: the trace norm of S11^-1/2 S12 S22^-1/2, in float64."""
    x, y = (z.astype(np.float64) - z.mean(0) for z in (x, y))
    rows = len(x) - 1

    def inverse_root(s):
        value, vector = np.linalg.eigh(s)
        return vector @ np.diag(value**-0.5) @ vector.T

    left = inverse_root(x.T @ x / rows + r * np.eye(x.shape[1]))
    right = inverse_root(y.T @ y / rows + r * np.eye(y.shape[1]))
    return np.linalg.svd(left @ (x.T @ y / rows) @ right, compute_uv=False).sum()


def views(rows=30, widths=(4, 3)):
    x = RNG.normal(size=(rows, widths[0]))
    y = x[:, : widths[1]] + 0.7 * RNG.normal(size=(rows, widths[1]))
    return x.astype(np.float32), y.astype(np.float32)


def test_total_correlation_is_the_trace_norm():
    x, y = views()
    np.testing.assert_allclose(
        total_correlation(jnp.asarray(x), jnp.asarray(y)), by_definition(x, y), 1e-5
    )
    mask = np.arange(30) % 3 > 0
    found = correlation_loss(jnp.asarray(x), jnp.asarray(y), jnp.asarray(mask))
    wanted = -by_definition(x[mask], y[mask])
    np.testing.assert_allclose(found, np.where(mask, wanted, 0), rtol=1e-5)


def test_a_linear_map_changes_nothing_but_by_the_regularizer():
    x, _ = views()
    mixed = x @ RNG.normal(size=(4, 4)).astype(np.float32)
    found = total_correlation(jnp.asarray(x), jnp.asarray(mixed), regularize=1e-6)
    np.testing.assert_allclose(found, 4.0, rtol=1e-3)


@pytest.mark.parametrize("case", ["plain", "equal variances", "fewer rows than features"])
def test_correlation_gradient_against_finite_differences(case):
    x, y = views(rows=3) if case.startswith("fewer") else views()
    if case == "equal variances":  # where the derivative of an eigenvector is infinite
        q = np.linalg.qr(x - x.mean(0))[0]
        x, y = q.astype(np.float32), (q[:, :3] + 0.1 * q[:, 1:4]).astype(np.float32)
    # The definition in float64 is the judge; autodiff runs in float32.
    loss = jax.jit(jax.grad(lambda x, y: total_correlation(x, y, regularize=0.1), (0, 1)))
    grads = loss(jnp.asarray(x), jnp.asarray(y))
    for found, other, place in zip(grads, (x, y), (0, 1), strict=True):
        wanted = np.zeros(other.shape)
        for index in np.ndindex(other.shape):
            step = np.zeros(other.shape)
            step[index] = 1e-5
            ends = [
                by_definition(*((x + s, y) if place == 0 else (x, y + s)), r=0.1)
                for s in (step, -step)
            ]
            wanted[index] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=2e-4)
