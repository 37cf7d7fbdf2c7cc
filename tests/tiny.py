"""Shared by tests of several folders: a config for small whole runs, and equality of trees."""

from typing import Any

import jax
import numpy as np


def same(a: Any, b: Any) -> None:
    """Assert that two trees of arrays have the same structure, dtypes and bits."""

    def bits(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if is_key else leaf)

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(bits(x), bits(y))


def config(data_dir: Any, **train: Any) -> dict[str, Any]:
    """ViT 2x32, BERT 1x32, co-attention 1x32 on 40 scenes of `shapes`."""
    return {
        "seed": 3,
        "model": {
            "image_encoder": {
                "name": "vit", "width": 32, "depth": 2, "num_heads": 2, "patch_size": 16,
                "position": "sincos2d",
            },
            "text_encoder": {
                "name": "bert", "width": 32, "depth": 1, "num_heads": 2, "dropout_rate": 0.1,
            },
            "fusion": {"name": "co_attention", "width": 32, "depth": 1, "num_heads": 2,
                       "mlp_dim": 64},
        },
        "task": {"name": "vqa", "head": {"form": "meter"}},
        "data": {"name": "shapes", "num_scenes": 40, "batch_size": 16, "num_threads": 1,
                 "data_dir": str(data_dir)},
        "processor": {"image_size": 32, "max_length": 16, "vocab_size": 300},
        "optim": {
            "name": "adamw",
            "schedule": {"name": "warmup_cosine", "peak": 1e-3, "warmup_steps": 2},
            "weight_decay": 0.01,
            "clip_norm": 1.0,
        },
        "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
        "train": {"steps": 6, "log_every": 2, "eval_every": 3, "checkpoint_every": 2, **train},
        "evaluation": {"split": "validation", "batch_size": 16},
        "checkpoint": {"keep_last": 2, "keep_best": 1, "best_metric": "validation/accuracy"},
    }  # fmt: skip
