"""Images or texts encoded once: what a search keeps of them, and how it is made."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mmflax.data.batch import pad_rows
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.tasks.task import Search

_KEYS = {"image": ("image", "image_present"), "text": ("tokens", "text_mask")}


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Encoded images or texts: arrays [n …] on the host, `embedding` [n e] among them.

    `dtypes` are those that the encoder gave, whatever the arrays are kept in.
    """

    kind: str
    rows: Mapping[str, np.ndarray]
    dtypes: tuple[tuple[str, Any], ...]

    def __len__(self) -> int:
        return len(self.rows["embedding"])


class CorpusEncoder:
    """Runs a `Search`'s encoders in padded batches of `batch_size`, each compiled once.

    `dtype` is what floating arrays other than the embeddings are kept in; None: as they come.
    """

    def __init__(
        self, search: Search, params: Any, processor: Processor, *, batch_size: int, dtype: Any
    ):
        self.processor = dataclasses.replace(processor, absent_images=True, second_images=False)
        self.batch_size = batch_size
        self._params = params
        self._dtype = None if dtype is None else jnp.dtype(dtype)
        self._dtypes: dict[str, tuple[tuple[str, Any], ...]] = {}
        jit, spread = parallel(params)
        self._encoders = {
            "image": jit(self._run("image", search.encode_image, spread)),
            "text": jit(self._run("text", search.encode_text, spread)),
        }

    def images(self, images: Iterable[Any]) -> Corpus:
        """Encodes images: PIL images, paths, encoded bytes or uint8 arrays [h w 3]."""
        return self._encode("image", ({"image": image, "question": None} for image in images))

    def texts(self, texts: Iterable[str | None]) -> Corpus:
        """Encodes texts."""
        return self._encode("text", ({"image": None, "question": text} for text in texts))

    def _run(self, kind: str, encode: Callable[..., Any], spread: Any) -> Callable[..., Any]:
        def run(params: Any, batch: Any) -> Any:
            rows = spread(encode(params, spread(batch)))
            self._dtypes[kind] = tuple((name, row.dtype) for name, row in rows.items())
            return {name: self._kept(name, row) for name, row in rows.items()}

        return run

    def _kept(self, name: str, row: jax.Array) -> jax.Array:
        if name == "embedding":
            return row.astype(jnp.float32)
        floating = jnp.issubdtype(row.dtype, jnp.floating)
        return row.astype(self._dtype) if self._dtype is not None and floating else row

    def _encode(self, kind: str, raws: Iterable[Mapping[str, Any]]) -> Corpus:
        parts: dict[str, list[np.ndarray]] = {}
        needed = "image" if kind == "image" else "question"
        for chunk in _chunks(raws, self.batch_size):
            if any(raw[needed] is None for raw in chunk):
                raise MmflaxError(f"An absent {kind} cannot be searched for; leave it out.")
            batch = self.processor.batch([{"id": kind, **raw} for raw in chunk])
            arrays = pad_rows({name: batch[name] for name in _KEYS[kind]}, self.batch_size)
            rows = jax.device_get(self._encoders[kind](self._params, arrays))
            for name, row in rows.items():
                parts.setdefault(name, []).append(np.asarray(row)[: len(chunk)])
        if not parts:
            raise MmflaxError(f"There is nothing to encode: the list of {kind}s is empty.")
        # One array after another, so that no more than one is held twice.
        rows = {name: np.concatenate(parts.pop(name)) for name in list(parts)}
        return Corpus(kind, rows, self._dtypes[kind])


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
    split = NamedSharding(mesh, PartitionSpec(axes))

    def spread(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.with_sharding_constraint(x, split) if x.shape[0] % shards == 0 else x,
            tree,
        )

    jit = functools.partial(jax.jit, out_shardings=NamedSharding(mesh, PartitionSpec()))

    return jit, spread


def _chunks(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
