"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024).

"Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon. Each
update of a matrix has singular values near 1, by five Newton-Schulz steps in place of its singular
value decomposition. It is for the matrices inside a network; embeddings, heads, position tables,
norms and biases are left to Adam, as there. An update is scaled by 0.2 sqrt(max(rows, columns)),
which gives it the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable for LLM
training", arXiv:2502.16982, sec. 2.2), so that rates and weight decay of AdamW hold.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mmflax import paths
from mmflax.platform import platform

RMS = 0.2
A, B, C = 3.4445, -4.7750, 2.0315  # of the Newton-Schulz step
STEPS, EPSILON = 5, 1e-8
# Kernels that are no matrices inside the network: patch embeddings, heads, scores of words.
_OUTSIDE = re.compile(r"embedding/kernel$|(^|/)(\w+_)?head/|(^|/)objectives_|^(.*decoder/)?output/")
# axes of a kernel -> how many of the first are its rows (what is summed over)
_ROWS = {2: 1, 4: 3}  # dense [d e]; convolution [k l c d]
_HEADS_IN, _HEADS_OUT = (
    re.compile(r"(^|/)(query|key|value)/kernel$"),
    re.compile(r"(^|/)out/kernel$"),
)


class Sides(NamedTuple):
    """Which axes of a parameter are the rows of its matrix, and which the columns."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]


def dimension_numbers(path: str, ndim: int) -> Sides | None:
    """Which axes of a parameter are the rows and the columns of its matrix; None for Adam.

    Of a scanned stack the first axis is left out: each layer has its own matrix. All heads of an
    attention kernel [d h k] or [h k d] are one matrix, and so are the places of a convolution's.
    """
    scanned = "layers" in path.split("/")[:-1]
    axes = tuple(range(int(scanned), ndim))
    if not re.search(r"(^|/)kernel$", path) or _OUTSIDE.search(path):
        return None
    rows = _ROWS.get(len(axes))
    if len(axes) == 3:
        rows = 1 if _HEADS_IN.search(path) else 2 if _HEADS_OUT.search(path) else None
    return None if rows is None else Sides(axes[:rows], axes[rows:])


def scale_by_muon_and_adam(
    shapes: Mapping[str, Any], momentum: float, b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
    """Muon's updates of matrices and Adam's of all else, both without rate and weight decay.

    Args:
      shapes: path -> array or shape of every parameter.
      momentum: of Muon, as Nesterov's.
      b1: decay of the first moment, of Adam.
      b2: decay of the second moment, of Adam.
      eps: of Adam.
    """
    numbers = {path: dimension_numbers(path, len(leaf.shape)) for path, leaf in shapes.items()}
    axes = {path: of for path, of in numbers.items() if of is not None}

    def labels(tree: Any) -> Any:
        return paths.map_leaves(lambda path, _: "muon" if path in axes else "adam", tree)

    def scaled(path: str, update: Array) -> Array:
        """Of a leaf, its matrices orthogonal and of AdamW's size."""
        first, second = axes[path]
        rows, columns = (math.prod(update.shape[axis] for axis in part) for part in (first, second))
        layers = update.shape[: first[0]]
        matrices = orthogonal(update.reshape(*layers, rows, columns))
        return matrices.reshape(update.shape) * (RMS * math.sqrt(max(rows, columns)))

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        averaged, state = moments.update(grads, state, params)
        return paths.map_leaves(scaled, averaged), state

    moments = nesterov(momentum)
    muon = optax.GradientTransformation(moments.init, update)
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)


class MomentumState(NamedTuple):
    """Updates so far, and the average of their gradients."""

    step: Array
    mu: Any


def nesterov(decay: float) -> optax.GradientTransformation:
    """The average of gradients, one step ahead as Nesterov's, both corrected for their start at 0
    (Dozat 2016, "Incorporating Nesterov momentum into Adam", algorithm 2)."""

    def init(params: Any) -> MomentumState:
        return MomentumState(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

    def update(grads: Any, state: MomentumState, params: Any = None) -> tuple[Any, MomentumState]:
        mu = optax.tree.update_moment(grads, state.mu, decay, 1)
        count = optax.safe_increment(state.step)
        ahead = optax.tree.bias_correction(mu, decay, optax.safe_increment(count))
        now = optax.tree.bias_correction(grads, decay, count)
        updates = jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, ahead, now)
        return updates, MomentumState(count, mu)

    return optax.GradientTransformation(init, update)


def orthogonal(x: Float[Array, "*g r c"]) -> Float[Array, "*g r c"]:
    """Each matrix U S V^T as U S' V^T with S' near 1, by five Newton-Schulz steps
    x <- a x + (b x x^T + c (x x^T)^2) x (Jordan et al. 2024).

    On a CPU the steps of a long x are taken on x x^T, which is small, and x is multiplied once:
    x x^T goes to p x x^T p with p = a + b x x^T + c (x x^T)^2. That needs float32, in which an
    accelerator has nothing to gain by it.
    """
    rows, columns = x.shape[-2:]
    if rows > columns:
        return orthogonal(x.swapaxes(-2, -1)).swapaxes(-2, -1)
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + EPSILON)
    # Multiplications: 5 (2 r r c + r r r) against 2 r r c + 17 r r r.
    if platform() != "cpu" or 2 * columns < 3 * rows:
        for _ in range(STEPS):
            gram = x @ x.swapaxes(-2, -1)
            x = A * x + (B * gram + C * (gram @ gram)) @ x
        return x
    exact = x.astype(jnp.float32)
    gram = exact @ exact.swapaxes(-2, -1)
    one = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
    product = A * one + B * gram + C * (gram @ gram)
    factor = product
    for _ in range(STEPS - 1):
        gram = factor @ gram @ factor
        factor = A * one + B * gram + C * (gram @ gram)
        product = factor @ product
    return (product @ exact).astype(x.dtype)
