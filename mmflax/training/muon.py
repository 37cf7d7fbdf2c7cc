"""Muon: momentum whose matrices are made orthogonal (Jordan et al. 2024).

"Muon: An optimizer for hidden layers in neural networks", kellerjordan.github.io/posts/muon. Each
update of a matrix has singular values near 1, by five Newton-Schulz steps in place of its singular
value decomposition. It is for the matrices inside a network; embeddings, heads, position tables,
norms and biases are left to Adam, as there. An update is scaled by 0.2 sqrt(max(rows, columns)),
which gives it the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable for LLM
training", arXiv:2502.16982, sec. 2.2), so that rates and weight decay of AdamW hold.

Matrices of one shape are stacked and made orthogonal together. On a mesh the stack is gathered once
and each device takes whole matrices of it, as in sec. 2.3 there: a Newton-Schulz step of a matrix
that is split would communicate in every product.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from mmflax import paths
from mmflax.platform import platform

RMS = 0.2
A, B, C = 3.4445, -4.7750, 2.0315  # of the Newton-Schulz step
STEPS, EPSILON = 5, 1e-8
STACK_BYTES = 2**28  # of the matrices that are gathered and made orthogonal together, at most
PADDING = 4  # a stack is padded to at most so many times its matrices
# Kernels that are no matrices inside the network: patch embeddings, heads, scores of words.
_OUTSIDE = re.compile(r"embedding/kernel$|(^|/)(\w+_)?head/|(^|/)objectives_|^(.*decoder/)?output/")
# axes of a kernel -> how many of the first are its rows (what is summed over)
_ROWS = {2: 1, 4: 3}  # dense [d e]; convolution [k l c d]
_HEADS_IN, _HEADS_OUT = (
    re.compile(r"(^|/)(query|key|value)/kernel$"),
    re.compile(r"(^|/)out/kernel$"),
)
# Second of the two kernels of an attention or an MLP, which path rules split like the transposed
# first.
_SECOND = re.compile(r"(^|/)(out|fc2)/kernel$")


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

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        averaged, state = moments.update(grads, state, params)
        leaves = paths.leaves(averaged)
        matrices = [_matrices(path, leaf, axes[path]) for path, leaf in leaves.items()]
        made = dict(zip(leaves, all_orthogonal(matrices), strict=True))

        def scaled(path: str, leaf: Array) -> Array:
            """Of a leaf, its matrices orthogonal and of AdamW's size."""
            found = made[path] * (RMS * math.sqrt(max(made[path].shape[-2:])))
            turned = _is_turned(path, *_size(leaf, axes[path]))
            return (found.swapaxes(1, 2) if turned else found).reshape(leaf.shape)

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


def _size(leaf: Array, sides: Sides) -> tuple[int, int]:
    """Rows and columns of a leaf's matrices."""
    rows, columns = (math.prod(leaf.shape[axis] for axis in part) for part in sides)
    return rows, columns


def _is_turned(path: str, rows: int, columns: int) -> bool:
    """Whether a matrix is transposed before it is stacked with others, so that an MLP's two kernels
    are of one shape, and split over a mesh along the same dimension, as an attention's are."""
    return rows > columns or (rows == columns and _SECOND.search(path) is not None)


def _matrices(path: str, leaf: Array, sides: Sides) -> Float[Array, "n r c"]:
    """The matrices of a leaf, one for each layer of a scanned stack, with at most as many rows as
    columns."""
    rows, columns = _size(leaf, sides)
    stack = leaf.reshape(-1, rows, columns)
    return stack.swapaxes(1, 2) if _is_turned(path, rows, columns) else stack


def all_orthogonal(stacks: Sequence[Float[Array, "n r c"]]) -> list[Float[Array, "n r c"]]:
    """``orthogonal`` of every stack, those of one shape together."""
    groups: dict[Any, list[int]] = {}
    for i, stack in enumerate(stacks):
        groups.setdefault((stack.shape[1:], stack.dtype), []).append(i)
    found: dict[int, Array] = {}
    for members in groups.values():
        together = jnp.concatenate([stacks[i] for i in members])
        most = max(1, STACK_BYTES // (together.nbytes // len(together)))
        parts = [together[start : start + most] for start in range(0, len(together), most)]
        made = jnp.concatenate([_divided(orthogonal, part) for part in parts])
        ends = list(itertools.accumulate(len(stacks[i]) for i in members))
        found |= dict(zip(members, jnp.split(made, ends[:-1]), strict=True))
    return [found[i] for i in range(len(stacks))]


def _divided(function: Callable[[Array], Array], stack: Float[Array, "n r c"]) -> Array:
    """``function`` of a stack of matrices, of which each device of the mesh takes its share.

    Without a mesh it is ``function(stack)``. The stack is gathered, each device computes whole
    matrices, and all results are gathered; what needs a part of them takes that.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = {
        name: mesh.shape[name]
        for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True)
        if kind == AxisType.Auto
    }
    if math.prod(sizes.values()) == 1:
        return function(stack)
    whole = PartitionSpec()
    stack = _placed(stack, whole)
    axes = shared_over(len(stack), sizes)
    if not axes:
        return _placed(function(stack), whole)
    devices = math.prod(sizes[name] for name in axes)
    padded = jnp.pad(stack, ((0, -len(stack) % devices), (0, 0), (0, 0)))
    share = PartitionSpec(axes)
    made = _placed(function(_placed(padded, share)), share)
    return _placed(made, whole)[: len(stack)]


def _placed(x: Array, spec: PartitionSpec) -> Array:
    constrained: Array = jax.lax.with_sharding_constraint(x, spec)
    return constrained


def shared_over(matrices: int, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The mesh axes over which a stack of so many matrices is divided.

    Those that leave the fewest to a device, and of these those that need the least padding; none
    where the padding would be more communication than the division saves work.
    """
    best: tuple[str, ...] = ()
    fewest = matrices, matrices
    for count in range(1, len(sizes) + 1):
        for axes in itertools.combinations(sizes, count):
            devices = math.prod(sizes[name] for name in axes)
            each = -(-matrices // devices)
            if each * devices <= PADDING * matrices and (each, each * devices) < fewest:
                best, fewest = axes, (each, each * devices)
    return best


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
