"""The model that generates a text about an image, and `generate`, which decodes with it."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float, Int

from mmflax.batch_keys import IMAGE_KEYS, TEXT_KEYS, require, select
from mmflax.errors import MmflaxError
from mmflax.models.decoder import decoding
from mmflax.models.decoder.decoder import Context, Decoder
from mmflax.models.decoder.memory import Memory
from mmflax.tasks.inputs import encode, grounded
from mmflax.tasks.task import Batch, Outputs

# Options of each way to decode, with their defaults; `generate` says what they mean.
_COMMON: dict[str, Any] = dict(
    min_length=0, max_length=None, repetition_penalty=1.0, no_repeat_ngram_size=0
)
METHODS: dict[str, dict[str, Any]] = {
    "greedy": _COMMON,
    "beam": _COMMON | dict(beams=4, length_penalty=0.6),
    "sample": _COMMON | dict(temperature=1.0, top_k=0, top_p=1.0),
}


class GenerationModel(nn.Module):
    """Reads what `encode` reads, and `target, target_mask`; gives `{"logits": [b s-1 v]}`.

    With `table="text_encoder"` the decoder's words are those of the text encoder's table.
    `begin` stands in place of the target's first token where the decoder begins with another.
    For decoding: `prepare` encodes the batch once, `step` scores one more token (see `Decoder`).
    """

    backbone: nn.Module
    memory: Memory
    decoder: Decoder
    limits: decoding.Limits
    table: str = "own"
    grounding: nn.Module | None = None
    begin: int | None = None

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        target = require(batch, "target", "The task 'generation'", "choose another task")
        encoded = encode(self.backbone, batch, train=train)
        memory, mask = self.memory(encoded)
        before = target[:, :-1]
        if self.begin is not None:
            before = before.at[:, 0].set(self.begin)
        logits = self.decoder(
            before,
            memory,
            tokens_mask=batch["target_mask"][:, :-1],
            memory_mask=mask,
            table=self._table(),
            train=train,
        )
        return {"logits": logits, **grounded(self.grounding, self.backbone, encoded)}

    def prepare(self, batch: Batch) -> Context:
        """What every step attends to, encoded and projected once."""
        return self.decoder.prepare(*self.memory(encode(self.backbone, batch, train=False)))

    def empty(self, rows: int, length: int) -> Any:
        return self.decoder.empty(rows, length)

    def step(
        self, context: Context, cache: Any, token: Int[Array, "r"], position: Int[Array, ""]
    ) -> tuple[Float[Array, "r v"], Any]:
        return self.decoder.step(context, cache, token, position, table=self._table())

    def _table(self) -> Array | None:
        return self.backbone.text_encoder.word_embedding.embedding if self.table != "own" else None


def generate(
    model: nn.Module,
    params: Any,
    batch: Batch,
    *,
    method: str = "greedy",
    key: Array | None = None,
    **options: Any,
) -> dict[str, Array]:
    """Texts for a batch: `{"tokens": [b s], "scores": [b]}`; compiled once per method and options.

    `tokens` are `[CLS] pieces [SEP]` and padding; `Processor.decode` reads a row. `scores` are
    log-probabilities of whole texts, for "beam" divided by the length penalty.

    Args:
      model: a generation task's `model`, or another with `limits`, `prepare`, `empty` and `step`,
        such as a published one that writes (BLIP).
      batch: what the encoders read (`IMAGE_KEYS`, `TEXT_KEYS`); no target needed.
      method: "greedy"; "beam", with `beams` (4) and `length_penalty` (0.6, the alpha of Wu et al.
        2016, eq. 14); or "sample", with `temperature` (1), `top_k` (0 = all) and `top_p` (1).
      key: for "sample", a `jax.random.key`; row i draws from it folded with i.
      options: those of the method, and for all: `min_length` (0), the fewest tokens between begin
        and end; `max_length`, the columns of the result (the task's target length);
        `repetition_penalty` (1.0; 1.2 is the custom), which makes tokens that the text has already
        less probable; and `no_repeat_ngram_size` (0), so many tokens never occur twice in a row of
        the same order. The last two mean what they mean in transformers; see `decoding.Limits`.

    Raises:
      MmflaxError: an unknown method or option, or one out of its range.
    """
    options = check_options(method, options)
    if (key is None) == (method == "sample"):
        raise MmflaxError(
            'method "sample" draws at random: give it key=jax.random.key(...).'
            if key is None
            else f"method {method!r} draws nothing at random: leave key out."
        )
    inputs = select(batch, IMAGE_KEYS + TEXT_KEYS)
    return _generate(model, params, inputs, key, method, tuple(sorted(options.items())))


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _generate(
    model: Any,
    params: Any,
    batch: Any,
    key: Any,
    method: str,
    options: tuple[tuple[str, Any], ...],
) -> dict[str, Array]:
    chosen = dict(options)
    length = chosen["max_length"] or model.limits.length
    limits = limits_of(model.limits, {name: chosen.pop(name) for name in _COMMON})
    rows, variables = batch["tokens"].shape[0], {"params": params}
    context = model.apply(variables, batch, method="prepare")
    cache = model.apply(variables, rows, length - 1, method="empty")

    def step(cache: Any, token: Array, position: Array) -> Any:
        return model.apply(variables, context, cache, token, position, method="step")

    if method == "beam":
        alpha = chosen.pop("length_penalty")
        result = decoding.beam_search(step, cache, limits, rows=rows, alpha=alpha, **chosen)
    elif method == "sample":
        keys = decoding.row_keys(key, rows)
        result = decoding.sample(step, cache, limits, keys=keys, **chosen)
    else:
        result = decoding.greedy(step, cache, limits, rows=rows)
    return {"tokens": result.tokens, "scores": result.scores}


def check_options(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's options, defaults filled in."""
    if method not in METHODS:
        raise MmflaxError(f"decode method is {method!r}; expected one of {', '.join(METHODS)}.")
    if unknown := sorted(set(given) - set(METHODS[method])):
        raise MmflaxError(
            f"method {method!r} has no option {unknown[0]!r}; it has {', '.join(METHODS[method])}."
        )
    options = {**METHODS[method], **given}
    try:
        if method == "sample":
            decoding.check_sampling(**{n: options[n] for n in ("temperature", "top_k", "top_p")})
        if method == "beam":
            decoding.check_beams(options["beams"], options["length_penalty"])
    except TypeError as error:
        raise MmflaxError(f"method {method!r} has {dict(given)}; expected numbers.") from error
    return options


def limits_of(limits: decoding.Limits, options: Mapping[str, Any]) -> decoding.Limits:
    """The limits with those of the options that every method has, checked."""
    changed = {name: options[name] for name in _COMMON if name != "max_length"}
    length = options["max_length"] or limits.length
    limits = limits._replace(length=length, **changed)
    try:
        limits.check()
    except TypeError as error:
        raise MmflaxError(f"decoding has {dict(options)}; expected numbers.") from error
    return limits
