"""What a task is to the trainer: a model, its loss and its metrics."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

Batch = Mapping[str, Any]
Outputs = dict[str, Any]


class Task(NamedTuple):
    """`model.apply({"params": p}, batch, train=…) -> outputs`; loss and metrics are per example.

    - `loss(outputs, batch) -> [b]`
    - `metrics(outputs, batch) -> {name: (sum [b], count [b])}`

    Neither looks at `batch["mask"]`: the caller multiplies by it, sums, and divides last, so every
    mean is exact for any batch size, padding and mesh.
    """

    model: nn.Module
    loss: Callable[[Outputs, Batch], Float[Array, "b"]]
    metrics: Callable[[Outputs, Batch], dict[str, tuple[Float[Array, "b"], Float[Array, "b"]]]]
