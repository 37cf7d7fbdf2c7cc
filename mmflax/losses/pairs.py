"""Reductions over all pairs of a batch, the one thing that every contrastive loss is made of.

A pair (i, j) has the logit `scale * x_i . y_j + bias`. A *reduction* turns the logits of row i (all
pairs with x_i) and of column j (all pairs with y_j) into one number each:

- "logsumexp": log of the sum of exponentials, the denominator of a softmax
- "softplus": sum of log(1 + exp(logit)), what independent yes/no questions cost
- "max": the largest logit; passes no gradient

Which pairs count: those of two rows in use (`used`) with different `keys`, so neither a row with
itself nor two rows that show the same image; with `diagonal` also (i, i), whatever its key. A row
may have several keys [b k], its image's and its text's: a pair counts where none of them is equal.
A row or column without any such pair gives `NEGATIVE` (0 for "softplus").

`dense_pairs` holds the whole [b b] matrix; `contrastive_sharded.ring_pairs` never does.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Stands for minus infinity, whose differences would be NaN.
NEGATIVE = -1e30

Sums = tuple[Float[Array, "b"], Float[Array, "b"]]
# (x, y, scale, bias, keys, used, *, kind, diagonal) -> (rows, columns)
Reduce = Callable[..., Sums]


class Kind(NamedTuple):
    """`reduce(logits, axis)` of one block, `merge` of two blocks' results, and `empty`."""

    reduce: Callable[[Array, int], Array]
    merge: Callable[[Array, Array], Array]
    empty: float


KINDS = {
    "logsumexp": Kind(jax.nn.logsumexp, jnp.logaddexp, NEGATIVE),
    "softplus": Kind(lambda x, axis: jax.nn.softplus(x).sum(axis), jnp.add, 0.0),
    "max": Kind(jnp.max, jnp.maximum, NEGATIVE),
}


def similarities(x: Float[Array, "p d"], y: Float[Array, "q d"]) -> Float[Array, "p q"]:
    """All products x_i . y_j in float32; a rounded product would be multiplied by the scale."""
    return jnp.einsum(
        "pd,qd->pq", x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )


def different(keys: Int[Array, "p ..."], others: Int[Array, "q ..."]) -> Bool[Array, "p q"]:
    """Which pairs of rows have no key in common."""
    unequal = keys[:, None] != others[None]
    return unequal.reshape(*unequal.shape[:2], -1).all(axis=-1)


def allowed(rows: Any, columns: Any, diagonal: bool) -> Bool[Array, "p q"]:
    """Which pairs count; `rows` and `columns` are each (index, key, used)."""
    index, key, used = rows
    other_index, other_key, other_used = columns
    counts = used[:, None] & other_used[None] & different(key, other_key)
    return counts | (index[:, None] == other_index[None]) if diagonal else counts


def dense_pairs(
    x: Float[Array, "b d"],
    y: Float[Array, "b d"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    keys: Int[Array, "b ..."],
    used: Bool[Array, "b"],
    *,
    kind: str,
    diagonal: bool,
) -> Sums:
    """The reductions on one device, by way of the [b b] matrix."""
    if kind == "max":
        x, y = jax.lax.stop_gradient((x, y))
    tags = (jnp.arange(x.shape[0]), keys, used)
    logits = scale.astype(jnp.float32) * similarities(x, y) + bias.astype(jnp.float32)
    logits = jnp.where(allowed(tags, tags, diagonal), logits, NEGATIVE)
    reduce = KINDS[kind].reduce
    return reduce(logits, 1), reduce(logits, 0)
