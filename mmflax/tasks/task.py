"""What a task is to the trainer and the evaluator: a model, its loss, its metrics, and what it is
judged by over a whole split."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

Batch = Mapping[str, Any]
Outputs = dict[str, Any]
Record = Mapping[str, Any]


class Search(NamedTuple):
    """How a retrieval task encodes, compares and re-ranks; each is `(params, …) -> arrays`.

    - `encode_image(params, batch) -> {name: array [b …]}`, `embedding` [b e] among them
    - `encode_text(params, batch) -> {name: array [b …]}`, `embedding` [b e] among them
    - `match(params, image, text) -> [b]`: scores of pairs of cached rows; None = no re-ranking
    """

    encode_image: Callable[[Any, Batch], dict[str, Array]]
    encode_text: Callable[[Any, Batch], dict[str, Array]]
    match: Callable[[Any, dict[str, Array], dict[str, Array]], Array] | None = None


class Task(NamedTuple):
    """`model.apply({"params": p}, batch, train=…) -> outputs`; loss and metrics are per example.

    - `loss(outputs, batch) -> [b]`
    - `metrics(outputs, batch) -> {name: (sum [b], count [b])}`
    - `predict(params, batch) -> {name: array [b …]}`: what a row's answer is, such as decoded
      `tokens` [b s] or `logits` [b a]; runs compiled, in evaluation only
    - `score(records) -> {metric: value}`: metrics that are no sum over examples (CIDEr-D, AUROC,
      consistency). A record is a raw example without its images, with what `predict` gave for it
      as numpy, `text` decoded from `tokens`, and `predicted_answer` from `logits`
    - `search`: for retrieval, see `Search`

    Loss and metrics do not look at `batch["mask"]`: the caller multiplies by it, sums, and divides
    last, so every mean is exact for any batch size, padding and mesh.
    """

    model: nn.Module
    loss: Callable[[Outputs, Batch], Float[Array, "b"]]
    metrics: Callable[[Outputs, Batch], dict[str, tuple[Float[Array, "b"], Float[Array, "b"]]]]
    predict: Callable[[Any, Batch], dict[str, Array]] | None = None
    score: Callable[[Sequence[Record]], dict[str, float]] | None = None
    search: Search | None = None
