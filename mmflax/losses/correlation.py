"""Deep canonical correlation analysis (Andrew et al. 2013): features that go together."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def total_correlation(
    x: Float[Array, "b d"],
    y: Float[Array, "b e"],
    mask: Bool[Array, "b"] | None = None,
    *,
    regularize: float = 1e-3,
) -> Float[Array, ""]:
    """The sum of the canonical correlations, between 0 and min(d, e).

    The trace norm of T = S11^-1/2 S12 S22^-1/2 (the objective of Andrew et al. 2013), covariances
    over the rows in use, `regularize` added to the diagonals of S11 and S22 (their r1, r2). In
    float32.

    Where this differs: S^-1/2 is replaced by the inverse Cholesky factor. The two differ by a
    rotation, which the singular values do not see, and the derivative stays finite when two
    variances are equal. A singular value s counts as s^2 / sqrt(s^2 + 1e-8), which is s but for
    s near 0 (fewer rows than features), where the trace norm has no derivative.
    """
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    used = jnp.ones(x.shape[:1]) if mask is None else mask
    weight = used.astype(jnp.float32)[:, None]
    count = weight.sum()
    rows = jnp.maximum(count - 1.0, 1.0)

    def centered(z: Array) -> Array:
        z = jnp.where(weight > 0, z, 0.0)
        return (z - z.sum(axis=0, keepdims=True) / jnp.maximum(count, 1.0)) * weight

    def product(a: Array, b: Array) -> Array:
        return jnp.einsum("bi,bj->ij", a, b, precision=jax.lax.Precision.HIGHEST) / rows

    def factor(z: Array) -> Array:
        return jnp.linalg.cholesky(product(z, z) + regularize * jnp.eye(z.shape[1]))

    x, y = centered(x), centered(y)
    solve = jax.scipy.linalg.solve_triangular
    left = solve(factor(x), product(x, y), lower=True)
    t = solve(factor(y), left.T, lower=True).T
    s = jnp.linalg.svd(t, compute_uv=False)
    return (jnp.square(s) * jax.lax.rsqrt(jnp.square(s) + 1e-8)).sum()


def correlation_loss(
    x: Float[Array, "b d"],
    y: Float[Array, "b e"],
    mask: Bool[Array, "b"] | None = None,
    *,
    regularize: float = 1e-3,
) -> Float[Array, "b"]:
    """-`total_correlation` in every row in use, so that their mean is the batch's; 0 elsewhere."""
    loss = -total_correlation(x, y, mask, regularize=regularize)
    shares = jnp.broadcast_to(loss, x.shape[:1])
    return shares if mask is None else jnp.where(mask, shares, 0.0)
