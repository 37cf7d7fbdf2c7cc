"""The train state: arrays only, created in place on the mesh."""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mmflax import paths
from mmflax.distributed.mesh import RULES, Rules, state_shardings
from mmflax.errors import MmflaxError

Init = Callable[[jax.Array], Any]


class TrainState(flax.struct.PyTreeNode):
    """Everything that one step reads and writes.

    Attributes:
      step: batches seen, int32; equals the data position.
      params: the model's parameters.
      opt_state: the optimizer's state.
      key: a typed PRNG key that never changes; each step folds its number in.
      ema: moving average of the parameters, or None.
      skipped: updates skipped for non-finite gradients, int32.
      skipped_in_row: how many of these were the last steps in a row, int32.
      frozen: parameters of the model that no step changes, which have no gradient and no moments;
        None where `params` are all. Checkpoints leave them out.
    """

    step: Any
    params: Any
    opt_state: Any
    key: Any
    ema: Any
    skipped: Any
    skipped_in_row: Any
    frozen: Any = None

    def evaluated(self) -> Any:
        """All parameters, the averaged ones where there is an average."""
        params = self.params if self.ema is None else self.ema
        return params if self.frozen is None else paths.union(params, self.frozen)


def init_state(
    init_fn: Init,
    tx: optax.GradientTransformation,
    key: jax.Array,
    *,
    ema: bool = False,
    params: Any = None,
) -> TrainState:
    """State at step 0, of ``init_fn(key)`` or of the given ``params``."""
    init_key, state_key = jax.random.split(key)
    if params is None:
        params = init_fn(init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        key=state_key,
        # A copy: donating one buffer twice is an error.
        ema=jax.tree.map(jnp.copy, params) if ema else None,
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


def abstract_sharded(
    init_fn: Init,
    tx: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    rules: Rules = RULES,
    *,
    ema: bool = False,
    frozen: Any = None,
) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing anything."""
    abstract: TrainState = jax.eval_shape(lambda key: init_state(init_fn, tx, key, ema=ema), key)
    abstract = abstract.replace(frozen=frozen)
    with_sharding: TrainState = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding),
        abstract,
        state_shardings(abstract, rules, mesh),
    )
    return with_sharding


def create_sharded(
    init_fn: Init,
    tx: optax.GradientTransformation,
    key: jax.Array,
    mesh: Mesh,
    rules: Rules = RULES,
    *,
    ema: bool = False,
    params: Any = None,
    frozen: Any = None,
) -> TrainState:
    """State at step 0, each array made where the rules put it, without those that are frozen.

    Args:
      params: host arrays (pretrained) in place of ``init_fn``'s; the optimizer's state is made
        after them. Every process passes the whole arrays.
      frozen: shapes of the parameters that `init_fn` leaves out, which rules may be for.
    """
    abstract = abstract_sharded(init_fn, tx, key, mesh, rules, ema=ema, frozen=frozen)
    abstract = abstract.replace(frozen=None)
    if params is not None:
        _check_same(abstract.params, params)
        params = jax.tree.map(
            lambda leaf, value: jax.make_array_from_callback(
                leaf.shape, leaf.sharding, lambda index: np.asarray(value[index], leaf.dtype)
            ),
            abstract.params,
            params,
        )
    make = jax.jit(
        lambda key, params: init_state(init_fn, tx, key, ema=ema, params=params),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract),
    )
    state: TrainState = make(key, params)
    return state


def _check_same(abstract: Any, params: Any) -> None:
    expected, given = str(jax.tree.structure(abstract)), str(jax.tree.structure(params))
    if expected != given:
        raise MmflaxError(
            f"the given parameters form another tree than the model's: found {given}, "
            f"expected {expected}"
        )
    for (path, leaf), value in zip(
        paths.leaves(abstract).items(), jax.tree.leaves(params), strict=True
    ):
        if leaf.shape != value.shape:
            raise MmflaxError(
                f"parameter {path} is {list(value.shape)}, but the model needs {list(leaf.shape)}"
            )
