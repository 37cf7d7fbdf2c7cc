"""Top-1 accuracy as (sum, count) per example, whole and by group."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Metric = tuple[Float[Array, "b"], Float[Array, "b"]]


def accuracy(logits: Float[Array, "b a"], label: Int[Array, "b"]) -> Metric:
    """1 where the highest score is the label's; a negative label is never right, but counts."""
    right = (jnp.argmax(logits, axis=-1) == label) & (label >= 0)
    right = right.astype(jnp.float32)
    return right, jnp.ones_like(right)


def by_group(metric: Metric, group: Int[Array, "b"], names: tuple[str, ...]) -> dict[str, Metric]:
    """The same metric within each group: row i of `names` takes the examples with `group == i`."""
    total, count = metric
    members = {name: (group == i).astype(jnp.float32) for i, name in enumerate(names)}
    return {name: (total * member, count * member) for name, member in members.items()}
