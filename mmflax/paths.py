"""Paths of a tree's leaves as text ``a/b/c``."""

from collections.abc import Callable, Mapping
from typing import Any

import jax


def path_name(key_path: Any) -> str:
    """``a/b/c`` for a key path of ``jax.tree_util``."""
    return jax.tree_util.keystr(key_path, simple=True, separator="/")


def leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """path -> leaf, in the order of ``jax.tree.leaves``."""
    flat = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return {path_name(path): leaf for path, leaf in flat}


def map_leaves(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The same tree with ``function(path, leaf)`` in place of each leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(path_name(path), leaf), tree
    )


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict of path -> leaf."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def union(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The nested dict with the leaves of two that share none."""
    return nested({**leaves(first), **leaves(second)})
