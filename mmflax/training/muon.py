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
from typing import Any

import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from mmflax import paths

RMS = 0.2
# Kernels that are no matrices inside the network: patch embeddings, heads, scores of words.
_OUTSIDE = re.compile(r"embedding/kernel$|(^|/)(\w+_)?head/|(^|/)objectives_|^(.*decoder/)?output/")
# axes of a kernel -> how many of the first are its rows (what is summed over)
_ROWS = {2: 1, 4: 3}  # dense [d e]; convolution [k l c d]
_HEADS_IN, _HEADS_OUT = (
    re.compile(r"(^|/)(query|key|value)/kernel$"),
    re.compile(r"(^|/)out/kernel$"),
)


def dimension_numbers(path: str, ndim: int) -> MuonDimensionNumbers | None:
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
    return None if rows is None else MuonDimensionNumbers(axes[:rows], axes[rows:])


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

    def matrices(tree: Any) -> Any:
        return paths.map_leaves(lambda path, _: axes[path], tree)

    def labels(tree: Any) -> Any:
        return paths.map_leaves(lambda path, _: "muon" if path in axes else "adam", tree)

    def scale(path: str, update: Any) -> Any:
        sides = (math.prod(update.shape[axis] for axis in part) for part in axes[path])
        return update * (RMS * math.sqrt(max(sides)))

    muon = optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=matrices),
        optax.stateless(lambda updates, _: paths.map_leaves(scale, updates)),
    )
    return optax.partition({"muon": muon, "adam": optax.scale_by_adam(b1, b2, eps)}, labels)
