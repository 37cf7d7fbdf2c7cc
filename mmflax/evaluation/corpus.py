"""Images and texts encoded once, and the fusion's scores of chosen pairs of them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmflax.batch_keys import IMAGE_KEYS, TEXT_KEYS, select
from mmflax.data.batch import pad_rows
from mmflax.data.dataset import has_image, showing
from mmflax.data.image.bad_images import BadImages, masked_batch
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.tasks.task import Search

_KEYS = {"image": IMAGE_KEYS, "text": TEXT_KEYS}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Encoded images or texts: arrays [n …] on the host, `embedding` [n e] among them.

    Attributes:
      kind: `image` or `text`.
      rows: the arrays.
      dtypes: those that the encoder gave, whatever the arrays are kept in.
      places: int [n], which of the given ones the rows are; None is all of them.
    """

    kind: str
    rows: Mapping[str, np.ndarray]
    dtypes: tuple[tuple[str, Any], ...]
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rows["embedding"])


class PairScorer:
    """Encodes images and texts, and scores pairs of them: a task's `Search` with its parameters.

    Everything runs in padded batches of fixed sizes, so each function is compiled once a corpus
    shape, and padding changes nothing.

    Args:
      batch_size: images or texts encoded at a time.
      match_batch_size: pairs fused at a time; default 4 x `batch_size`.
      cache_dtype: how the encoders' outputs are kept, such as "bfloat16" (half the memory, and
        scores differ in the third digit); default as they come. Embeddings stay float32.
      placement: "host" gathers the rows of each batch there and sends them; "device" sends the
        corpus once and gathers there, which is faster where its memory holds it.
    """

    def __init__(
        self,
        search: Search | None,
        params: Any,
        processor: Processor,
        *,
        batch_size: int = 64,
        match_batch_size: int | None = None,
        cache_dtype: Any = None,
        placement: str = "host",
    ):
        if search is None:
            raise MmflaxError(
                "This task does not rank images and texts; train the task 'retrieval', then search."
            )
        match_batch_size = 4 * batch_size if match_batch_size is None else match_batch_size
        for name, size in (("batch_size", batch_size), ("match_batch_size", match_batch_size)):
            if size < 1:
                raise MmflaxError(f"{name} is {size}; it must be at least 1.")
        if placement not in ("host", "device"):
            raise MmflaxError(f"placement is {placement!r}; expected host or device.")
        self.processor = dataclasses.replace(processor, absent_images=True, second_images=False)
        self.batch_size, self.match_batch_size = batch_size, match_batch_size
        self.reranks = search.match is not None
        self._params, self._placement = params, placement
        self._cache_dtype = None if cache_dtype is None else jnp.dtype(cache_dtype)
        self._dtypes: dict[str, tuple[tuple[str, Any], ...]] = {}
        jit, split = parallel(params)

        def encoder(kind: str, encode: Callable[..., Any]) -> Callable[..., Any]:
            def run(params: Any, batch: Any) -> Any:
                rows = split(encode(params, split(batch)))
                self._dtypes[kind] = tuple((name, row.dtype) for name, row in rows.items())
                return {name: self._kept(name, row) for name, row in rows.items()}

            return jit(run)

        def match(params: Any, sides: Any, indices: Any, dtypes: Any) -> Any:
            if indices is not None:
                sides = [
                    {name: row[index] for name, row in side.items()}
                    for side, index in zip(sides, indices, strict=True)
                ]
            image, text = (
                {name: row.astype(dict(dtype)[name]) for name, row in split(side).items()}
                for side, dtype in zip(sides, dtypes, strict=True)
            )
            return search.match(params, image, text)  # type: ignore[misc]

        self._encoders = {
            "image": encoder("image", search.encode_image),
            "text": encoder("text", search.encode_text),
        }
        self._match = jit(match, static_argnums=3)

    def images(self, images: Iterable[Any], bad: BadImages | None = None) -> Corpus:
        """Encodes images: PIL images, paths, encoded bytes, uint8 arrays [h w 3], or dicts of an
        `image`, or a detector's `regions` and `boxes`, and maybe an `id`.

        With `bad` the images that cannot be read are noted there and left out (`Corpus.places`).
        """
        raws = ({**showing(image), "question": None} for image in images)
        return self._encode("image", raws, bad)

    def texts(self, texts: Iterable[str | None]) -> Corpus:
        """Encodes texts."""
        return self._encode("text", ({"image": None, "question": text} for text in texts))

    def match(
        self, images: Corpus, texts: Corpus, image_index: np.ndarray, text_index: np.ndarray
    ) -> np.ndarray:
        """The fusion's scores [p] of the pairs (image_index[i], text_index[i]).

        A pair that occurs twice is computed once.
        """
        if not self.reranks:
            raise MmflaxError(
                "This model has no fusion to match with; train with --config.task.fused=True."
            )
        pairs = np.asarray(image_index, np.int64) * len(texts) + np.asarray(text_index, np.int64)
        # In order of images, so that neighbors share the rows they read.
        pairs, places = np.unique(pairs, return_inverse=True)
        scores = np.empty(len(pairs), np.float32)
        corpora = (images, texts)
        dtypes = tuple(corpus.dtypes for corpus in corpora)
        stored = None
        if self._placement == "device":
            stored = [jax.device_put(dict(corpus.rows)) for corpus in corpora]
        size, waiting = self.match_batch_size, None
        for start in range(0, len(pairs), size):
            part = slice(start, min(start + size, len(pairs)))
            batch = pad_rows({"pair": pairs[part]}, size)["pair"]
            indices = [index.astype(np.int32) for index in np.divmod(batch, len(texts))]
            if stored is not None:
                out = self._match(self._params, stored, indices, dtypes)
            else:
                rows = [
                    {name: row[index] for name, row in corpus.rows.items()}
                    for corpus, index in zip(corpora, indices, strict=True)
                ]
                out = self._match(self._params, rows, None, dtypes)
            if waiting is not None:  # one late, so that gathering overlaps with computing
                _collect(scores, *waiting)
            waiting = part, out
        if waiting is not None:
            _collect(scores, *waiting)
        _check_finite(scores, "pairs have scores")
        return scores[places.reshape(-1)]

    def _kept(self, name: str, row: jax.Array) -> jax.Array:
        if name == "embedding":
            return row.astype(jnp.float32)
        floating = jnp.issubdtype(row.dtype, jnp.floating)
        return row if self._cache_dtype is None or not floating else row.astype(self._cache_dtype)

    def _encode(
        self, kind: str, raws: Iterable[Mapping[str, Any]], bad: BadImages | None = None
    ) -> Corpus:
        parts: dict[str, list[np.ndarray]] = {}
        usable: list[np.ndarray] = []
        for number, chunk in enumerate(_chunks(raws, self.batch_size)):
            there = has_image if kind == "image" else _has_text
            if not all(map(there, chunk)):
                raise MmflaxError(f"An absent {kind} cannot be searched for; leave it out.")
            named = [{"id": kind, **raw} for raw in chunk]
            if bad is None:
                batch, good = self.processor.batch(named), np.ones(len(chunk), bool)
            else:
                chosen = range(number * self.batch_size, number * self.batch_size + len(chunk))
                batch, good = masked_batch(named, self.processor, bad, chosen)
            usable.append(good)
            arrays = pad_rows(select(batch, _KEYS[kind]), self.batch_size)
            rows = jax.device_get(self._encoders[kind](self._params, arrays))
            for name, row in rows.items():
                parts.setdefault(name, []).append(np.asarray(row)[: len(chunk)][good])
        if not parts:
            raise MmflaxError(f"There is nothing to encode: the list of {kind}s is empty.")
        # One array after another, so that no more than one is held twice.
        rows = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
        _check_finite(rows["embedding"], f"{kind}s have embeddings")
        places = np.flatnonzero(np.concatenate(usable))
        if not len(places):
            raise MmflaxError(f"There is nothing to encode: no {kind} can be read.")
        return Corpus(kind, rows, self._dtypes[kind], places)


def _check_finite(rows: np.ndarray, what: str) -> None:
    """Raises where a row [n …] holds NaN or infinity: nothing can be ranked by it."""
    wrong = np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))
    if len(wrong):
        raise MmflaxError(
            f"{len(wrong)} of {len(rows)} {what} that are not finite, the first is number "
            f"{wrong[0]}; the model's parameters are out of range."
        )


def _has_text(raw: Mapping[str, Any]) -> bool:
    return raw["question"] is not None


def parallel(params: Any) -> tuple[Callable[..., Any], Callable[[Any], Any]]:
    """A `jit` whose results every process can read, and what splits a batch over the devices that
    hold the parameters."""
    leaves = jax.tree.leaves(params)
    place = getattr(leaves[0], "sharding", None) if leaves else None
    if not isinstance(place, NamedSharding) or place.mesh.size == 1:
        return jax.jit, lambda tree: tree
    mesh = place.mesh
    axes = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    shards = int(np.prod([mesh.shape[axis] for axis in axes]))
    sharding = NamedSharding(mesh, PartitionSpec(axes))

    def split(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: (
                jax.lax.with_sharding_constraint(x, sharding) if x.shape[0] % shards == 0 else x
            ),
            tree,
        )

    return functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec())), split


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(values)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk


def _collect(scores: np.ndarray, part: slice, out: jax.Array) -> None:
    scores[part] = np.asarray(jax.device_get(out), np.float32)[: part.stop - part.start]
