"""The train step: a pure function of arrays, without mesh or files."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmflax import paths
from mmflax.errors import MmflaxError
from mmflax.training.state import TrainState

Batch = dict[str, Any]
Sums = dict[str, tuple[jax.Array, jax.Array]]
Apply = Callable[[Any, Batch, Any, bool], Any]
Loss = Callable[[Any, Batch], jax.Array]
Metrics = Callable[[Any, Batch], Sums]


def make_train_step(
    apply_fn: Apply,
    loss: Loss,
    metrics: Metrics,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float | None = None,
    freeze: Sequence[str] = (),
    schedule: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Sums]]:
    """``(state, batch) -> (state, metrics)``.

    The loss is the mean over rows with a true ``mask``, for any number of micro-batches. If a
    gradient or the loss is not finite, params, optimizer state and average keep their bits, and
    the step is counted in ``skipped``.

    Args:
      apply_fn: ``(params, batch, key, train) -> outputs``; ``params`` are all of the model's, those
        that the state has as frozen, which get no gradient, among them.
      loss: ``(outputs, batch) -> [b]``.
      metrics: ``(outputs, batch) -> {name: (sum[b], count[b])}``.
      accumulate: micro-batches a step; must divide the batch.
      ema_decay: decay per step of the parameters' average; the state must hold one.
      freeze: path regexes of parameters that need no gradient.
      schedule: update count -> learning rate, only to report it.

    Returns:
      A function whose metrics are scalars ``{name: (sum, count)}``: the task's, ``loss``,
      ``grad_norm``, ``skipped``, ``skipped_in_row`` and ``learning_rate``. A skipped step adds
      nothing to the task's.
    """

    def loss_sum(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        params = paths.map_leaves(
            lambda path, leaf: jax.lax.stop_gradient(leaf) if _any(freeze, path) else leaf, params
        )
        if frozen is not None:
            params = paths.union(params, frozen)
        outputs = apply_fn(params, batch, key, True)
        sums = sum_rows(loss(outputs, batch), metrics(outputs, batch), batch)
        return sums["loss"][0], sums

    gradients = jax.grad(loss_sum, has_aux=True)

    def accumulated(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> Any:
        parts = jax.tree.map(lambda leaf: _split(leaf, accumulate), batch)
        first = jax.tree.map(lambda leaf: leaf[0], parts)
        zeros = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
            jax.eval_shape(gradients, params, frozen, first, key),
        )

        def body(carry: Any, indexed: Any) -> tuple[Any, None]:
            index, part = indexed
            new = gradients(params, frozen, part, jax.random.fold_in(key, index))
            return jax.tree.map(jnp.add, carry, new), None

        carry, _ = jax.lax.scan(body, zeros, (jnp.arange(accumulate), parts))
        return carry

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        if (state.ema is None) != (ema_decay is None):
            raise MmflaxError(
                "ema_decay and the state must agree: found "
                f"ema_decay={ema_decay} and a state {'without' if state.ema is None else 'with'} "
                "an average; create the state with ema=True exactly if ema_decay is set"
            )
        key = jax.random.fold_in(state.key, state.step)
        compute = gradients if accumulate == 1 else accumulated
        grads, sums = compute(state.params, state.frozen, batch, key)
        total, rows = sums["loss"]
        grads = jax.tree.map(lambda g: g / jnp.maximum(rows, 1.0).astype(g.dtype), grads)
        # NaN, infinity and a norm beyond float32's range all show in the norm. One isfinite for
        # each leaf instead makes XLA copy all of them into the update of every parameter, which
        # multiplied the time to compile.
        norm = optax.tree.norm(grads).astype(jnp.float32)
        finite = jnp.isfinite(norm + total.astype(jnp.float32))

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay is not None:
            ema = jax.tree.map(
                lambda old, new: old * ema_decay + new.astype(old.dtype) * (1.0 - ema_decay),
                ema,
                params,
            )
        params, opt_state, ema = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, ema),
            (state.params, state.opt_state, state.ema),
        )
        bad = 1 - finite.astype(jnp.int32)
        in_row = jnp.where(finite, 0, state.skipped_in_row + 1)

        one = jnp.ones((), jnp.float32)
        sums = dict(sums, grad_norm=(norm, one))
        sums = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0.0), sums)
        if schedule is not None:
            rate = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
            sums["learning_rate"] = (rate, one)
        sums["skipped"] = (bad.astype(jnp.float32), one)
        sums["skipped_in_row"] = (in_row.astype(jnp.float32), one)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + bad,
            skipped_in_row=in_row,
        )
        return state, sums

    return train_step


def sum_rows(losses: jax.Array, metrics: Sums, batch: Batch) -> Sums:
    """Per-example values -> ``{name: (sum, count)}``, scalars, over the rows whose mask is true."""
    mask = batch.get("mask")
    if mask is None:
        mask = jnp.ones(losses.shape, jnp.bool_)

    def add(values: jax.Array) -> jax.Array:
        # where, not a product: a padding row may hold NaN, and NaN * 0 is NaN.
        return jnp.sum(jnp.where(mask, values.astype(jnp.float32), 0.0))

    sums = {name: (add(total), add(count)) for name, (total, count) in metrics.items()}
    return {**sums, "loss": (add(losses), add(mask))}


def _split(leaf: jax.Array, parts: int) -> jax.Array:
    """[b ...] -> [parts b/parts ...]; strided, so that each device keeps its own rows."""
    if leaf.shape[0] % parts:
        raise MmflaxError(
            f"batch of {leaf.shape[0]} does not divide into accumulate={parts} micro-batches"
        )
    return leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:]).swapaxes(0, 1)


def _any(patterns: Sequence[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)
