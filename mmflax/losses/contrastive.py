"""Contrastive losses: the right pair of a batch against all its wrong ones.

`x` and `y` [b d] are the two sides' embeddings, row i of each belonging together; pass unit vectors
(`numerics.unit`) to compare by cosine. `scale` is 1 / temperature. `keys` [b] are equal where two
rows show the same image, or [b k] where a row has several, such as its image's and its text's: rows
that share one are no negatives of each other. `mask` [b] is false on rows that
take no part (padding, a modality absent): loss 0, and nobody's negative.

`reduce` compares the pairs: by default in a ring over the mesh in force, where there is one, laid
out as the batch (`contrastive_sharded`); `dense_pairs` holds the whole matrix.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.losses.contrastive_sharded import ring_pairs
from mmflax.losses.pairs import Reduce

Rows = Float[Array, "b d"]
Scalar = Float[Array, ""]
Keys = Int[Array, "b ..."] | None
Mask = Bool[Array, "b"] | None
Reducer = Reduce | None


def clip(
    x: Rows, y: Rows, scale: Scalar, *, keys: Keys = None, mask: Mask = None, reduce: Reducer = None
) -> Float[Array, "b"]:
    """Symmetric InfoNCE: mean of -log softmax over the row and over the column at the right pair.

    CLIP (Radford et al. 2021, fig. 3), InfoNCE (van den Oord et al. 2018, eq. 4) in both
    directions. Unlike the paper, rows with an equal key are left out of each other's sum.
    """
    keys, used, reduce = _defaults(x, keys, mask, reduce)
    bias = jnp.zeros((), jnp.float32)
    rows, columns = reduce(x, y, scale, bias, keys, used, kind="logsumexp", diagonal=True)
    return jnp.where(used, (rows + columns) / 2 - _right(x, y, scale), 0.0)


def nt_xent(
    x: Rows, y: Rows, scale: Scalar, *, keys: Keys = None, mask: Mask = None, reduce: Reducer = None
) -> Float[Array, "b"]:
    """SimCLR's loss (Chen et al. 2020, eq. 1): negatives come from both sides, 2b - 2 of them.

    Mean of l(x_i, y_i) and l(y_i, x_i); their mean over i is the paper's L.
    """
    keys, used, reduce = _defaults(x, keys, mask, reduce)
    bias = jnp.zeros((), jnp.float32)
    rows, columns = reduce(x, y, scale, bias, keys, used, kind="logsumexp", diagonal=True)
    own_x, _ = reduce(x, x, scale, bias, keys, used, kind="logsumexp", diagonal=False)
    own_y, _ = reduce(y, y, scale, bias, keys, used, kind="logsumexp", diagonal=False)
    sums = jnp.logaddexp(rows, own_x) + jnp.logaddexp(columns, own_y)
    return jnp.where(used, sums / 2 - _right(x, y, scale), 0.0)


def sigmoid(
    x: Rows,
    y: Rows,
    scale: Scalar,
    bias: Scalar,
    *,
    keys: Keys = None,
    mask: Mask = None,
    reduce: Reducer = None,
) -> Float[Array, "b"]:
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023, sec. 3.2): row i of the sum over all pairs.

    -sum_j log sigmoid(z_ij (scale x_i . y_j + bias)), z = 1 for the right pair and -1 for others;
    the mean over rows is the paper's, which divides by b.
    """
    keys, used, reduce = _defaults(x, keys, mask, reduce)
    rows, _ = reduce(x, y, scale, bias, keys, used, kind="softplus", diagonal=True)
    right = _right(x, y, scale) + bias.astype(jnp.float32)
    return jnp.where(used, rows - right, 0.0)  # softplus(-z) = softplus(z) - z


def recall_at_1(
    x: Rows, y: Rows, *, keys: Keys = None, mask: Mask = None, reduce: Reducer = None
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """1 where the right partner is strictly nearer than all others: (y for each x, x for each y).

    A tie is wrong, so that collapsed embeddings score 0; rows out of use give 0.
    """
    keys, used, reduce = _defaults(x, keys, mask, reduce)
    one, zero = jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    rows, columns = reduce(x, y, one, zero, keys, used, kind="max", diagonal=False)
    right = _right(x, y, one)
    ahead, back = used & (right > rows), used & (right > columns)
    return ahead.astype(jnp.float32), back.astype(jnp.float32)


def _defaults(
    x: Array, keys: Keys, mask: Mask, reduce: Reduce | None
) -> tuple[Array, Array, Reduce]:
    """Without keys every row shows an image of its own; without a mask every row is in use."""
    rows = x.shape[0]
    keys = jnp.arange(rows, dtype=jnp.int32) if keys is None else keys
    return keys, jnp.ones(rows, bool) if mask is None else mask, reduce or ring_pairs(rows)


def _right(x: Array, y: Array, scale: Array) -> Float[Array, "b"]:
    products = jnp.einsum(
        "bd,bd->b", x, y, precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    return scale.astype(jnp.float32) * products
