"""Which parameters of a run are adapted, trained whole and frozen, as ``config.lora`` says."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmflax import paths
from mmflax.config.sections import LoraConfig, regexes
from mmflax.errors import MmflaxError, option
from mmflax.models import lora
from mmflax.models.called import traced
from mmflax.pretrained.inspect import LazyArray
from mmflax.run.build import Experiment

Init = Callable[[jax.Array], Any]


@dataclasses.dataclass(frozen=True)
class Adapters:
    """The adapters of a run, and what becomes of the other parameters.

    Attributes:
      config: rank, scale and dropout.
      adapters: path of an adapted kernel -> its adapters.
      whole: path -> shape of the parameters that train whole.
      frozen: path -> shape of those that no step changes, adapted kernels among them.
    """

    config: LoraConfig
    adapters: Mapping[str, lora.Adapter]
    whole: Mapping[str, Any]
    frozen: Mapping[str, Any]

    def trained(self, params: Any, key: jax.Array) -> dict[str, Any]:
        """The tree that is trained, as training begins: of all parameters, what trains whole (its
        leaves may be anything), and the adapters, drawn from the key."""
        flat = paths.leaves(params)
        assert self.config.rank is not None
        drawn: dict[str, Any] = {path: flat[path] for path in self.whole}
        for adapter in self.adapters.values():
            drawn |= adapter.draw(key, self.config.rank)
        return paths.nested(drawn)

    def shapes(self) -> dict[str, Any]:
        """The trained tree's."""
        found: dict[str, Any] = jax.eval_shape(
            lambda key: self.trained(paths.nested(_zeros(self.whole)), key), jax.random.key(0)
        )
        return found

    def adapting(self, train: bool) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model computes with the adapters among its parameters."""
        return lora.adapted(self.config.scale, self.config.dropout if train else 0.0)

    def merge(self, params: Any) -> dict[str, Any]:
        """All parameters of the model alone, from those with adapters among them; on their mesh."""
        flat = paths.leaves(params)
        given, placed = {}, {}
        for path, adapter in self.adapters.items():
            given[path] = (flat[path], *(flat.pop(name) for name in adapter.names))
            placed[path] = flat[path].sharding

        def merged(given: Mapping[str, Any]) -> dict[str, Any]:
            return {path: self._merged(path, *arrays) for path, arrays in given.items()}

        return paths.nested({**flat, **jax.jit(merged, out_shardings=placed)(given)})

    def merge_lazily(self, values: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
        """`merge` of parameters by path that are read when they are used."""
        flat = dict(values)
        for path, adapter in self.adapters.items():
            parts = (flat[path], *(flat.pop(name) for name in adapter.names))

            def read(path: str = path, parts: tuple[LazyArray, ...] = parts) -> np.ndarray:
                return np.asarray(self._merged(path, *(jnp.asarray(part.read()) for part in parts)))

            flat[path] = LazyArray(parts[0].shape, read, parts)
        return flat

    def _merged(self, path: str, kernel: Any, a: Any, b: Any) -> Any:
        return lora.merged(self.adapters[path], kernel, a, b, self.config.scale)

    def describe(self) -> str:
        """One line for people."""
        thin = self.shapes()
        count = sum(leaf.size for leaf in jax.tree.leaves(thin))
        whole = sum(leaf.size for leaf in self.whole.values())
        frozen = sum(leaf.size for leaf in self.frozen.values())
        return (
            f"LoRA of rank {self.config.rank}, scale {self.config.scale:g}: "
            f"{len(self.adapters)} kernels adapted with {count - whole:,} parameters; {whole:,} "
            f"train whole, {frozen:,} are frozen"
        )


def adapters_of(
    experiment: Experiment, init: Init, is_new: Callable[[str], bool]
) -> Adapters | None:
    """What the config's ``lora`` adapts of the parameters that `init` draws; None without a rank.

    Args:
      is_new: whether ``config.init`` gives nothing for a path.

    Raises:
      MmflaxError: nothing that is loaded, a regex that matches nothing, or a target that is no
        dense layer's kernel.
    """
    config = experiment.lora
    if config.rank is None:
        return None
    shapes, modules = traced(init)
    if all(map(is_new, shapes)):
        raise MmflaxError(
            f"lora.rank is {config.rank}, and config.init loads nothing that could be adapted; "
            "give --config.init.from=SOURCE, or train everything: --config.lora.rank=None."
        )
    for pattern in config.also_train:
        if not any(re.search(pattern, path) for path in shapes):
            left = tuple(other for other in config.also_train if other != pattern)
            raise MmflaxError(
                f"lora.also_train has {pattern!r}, which matches no parameter (paths look like "
                f"{next(iter(shapes), '')!r}); correct it or remove it, as in "
                f"{option('lora.also_train', left)}."
            )
    whole = {
        path: leaf for path, leaf in shapes.items() if is_new(path) or _any(config.also_train, path)
    }
    never = regexes("optim.freeze", experiment.config["optim"].get("freeze", ()))
    kept = {path for path in shapes if path in whole or _any(never, path)}
    found = lora.find(config.targets, shapes, modules, kept)
    frozen = {path: leaf for path, leaf in shapes.items() if path not in whole}
    return Adapters(config, found, whole, frozen)


def _any(patterns: Collection[str], path: str) -> bool:
    return any(re.search(pattern, path) for pattern in patterns)


def _zeros(shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in shapes.items()}
