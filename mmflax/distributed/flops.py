"""FLOPs of a function by its own arithmetic: matrix products and convolutions in its jaxpr.

A multiplication and an addition are two FLOPs, as Chowdhery et al. 2022 (PaLM, appendix B) count
them; element-wise work, softmax and norms are left out, as there. A scanned layer counts as often
as it runs, which the cost analysis of a compiled program does not (it counts a loop's body once),
and what rematerialization computes again counts again. A Pallas kernel counts what it says of
itself, or else its body once for each step of its grid: with what its backward pass computes again
(flash attention: 9 products of queries by keys in all, where written-out attention has 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def count_flops(function: Callable[..., Any], *args: Any) -> int:
    """FLOPs of one call, over all devices.

    Args:
      function: traced, not run.
      args: arrays or their shapes.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args).jaxpr)


def jaxpr_flops(jaxpr: Any) -> int:
    """FLOPs of one run of a jaxpr.

    A ``while`` loop, whose end is not known, counts once. A call that gives nothing, which
    rematerialization leaves where all its results are kept, is not run.
    """
    return sum(_equation(one) for one in jaxpr.eqns if one.outvars or one.effects)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        each = math.prod(shape[axis] for axis in contracted)
        return int(2 * equation.outvars[0].aval.size * each)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        each = kernel.size // kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        # A dilated input is mostly zeros, with which nobody multiplies.
        zeros = math.prod(params["lhs_dilation"])
        return int(2 * equation.outvars[0].aval.size * each // zeros)
    if name == "cond":
        return max(jaxpr_flops(branch) for branch in _jaxprs(params["branches"]))
    if name == "pallas_call":
        estimate = params.get("cost_estimate")
        if estimate is not None:
            return int(estimate.flops)
        # A size that is known only when it runs counts once.
        steps = math.prod(size for size in params["grid_mapping"].grid if isinstance(size, int))
        return steps * jaxpr_flops(params["jaxpr"])
    inside = sum(map(jaxpr_flops, _jaxprs(list(params.values()))))
    if name == "scan":
        return int(params["length"]) * inside
    if name == "shard_map":  # shapes within are those of one device
        sizes = dict(params["mesh"].shape)
        axes = params["newly_manual_axes"] if "newly_manual_axes" in params else sizes
        return int(math.prod(sizes[axis] for axis in axes) * inside)
    return inside


def _jaxprs(value: Any) -> Iterator[Any]:
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _jaxprs(part)
