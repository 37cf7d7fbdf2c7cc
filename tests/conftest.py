"""Strict settings for the whole suite: simulated devices, no silent promotion, checked shapes."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes written in signatures are checked while testing and cost nothing in production.
_hook = install_import_hook(
    ["mmflax.models", "mmflax.losses", "mmflax.metrics", "mmflax.tasks"], "beartype.beartype"
)
