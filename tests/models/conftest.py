"""A vision-language model small enough that every test compiles it in a second or two."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.models.encoders import bert, vit
from mmflax.models.fusion import co_attention
from mmflax.models.vision_language import VisionLanguageModel


def tiny_model(*, form="meter", **fields):
    """Width 16, 4 heads, 5 image tokens (a 2x2 grid and CLS); one layer, then two that fuse."""
    sizes = dict(width=16, num_heads=4, mlp_dim=32, **fields)
    return VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, depth=1, **sizes),
        bert.build(vocab_size=30, max_length=16, depth=1, **sizes),
        co_attention.build(form=form, depth=2, **sizes),
    )


def tiny_inputs(*, batch=3, length=6, seed=0):
    """Texts of 2, 3, 4… tokens."""
    rng = np.random.default_rng(seed)
    used = np.arange(length) < 2 + np.arange(batch)[:, None]
    return {
        "image": jnp.asarray(rng.normal(size=(batch, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(5, 30, (batch, length)), jnp.int32),
        "text_mask": jnp.asarray(used),
    }


def random_params(model, *args, seed=0, **kwargs):
    """Random everywhere, biases and scales included, so that none hides behind its 0 or 1."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *args, **kwargs))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key in ("scale", "var") else 0.0
        return jnp.asarray(center + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def run_module(module, params, *args, key=None, **kwargs):
    """`module.apply`, compiled whole: op by op it compiles dozens of small programs."""
    rngs = None if key is None else {"dropout": jax.random.key(key)}
    return jax.jit(lambda params: module.apply({"params": params}, *args, rngs=rngs, **kwargs))(
        params
    )


@pytest.fixture(scope="session")
def zoo():
    """The helpers above; test modules cannot import a conftest."""
    return SimpleNamespace(
        model=tiny_model, inputs=tiny_inputs, params=random_params, run=run_module
    )


@pytest.fixture(scope="session", params=["meter", "lxmert"])
def tiny(request):
    """One form of co-attention: its model, inputs, random parameters, and `run(params, inputs)`."""
    model, inputs = tiny_model(form=request.param), tiny_inputs()
    return SimpleNamespace(
        form=request.param,
        model=model,
        inputs=inputs,
        params=random_params(model, **inputs, train=False),
        run=jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs, train=False)),
    )
