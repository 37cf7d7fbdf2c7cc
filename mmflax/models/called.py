"""Which modules a model is made of, with the fields that they have: found by tracing it."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from mmflax import paths


def traced(init: Callable[[jax.Array], Any]) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Shapes of the parameters, and every module that is called, both by path.

    Args:
      init: random key -> parameters.
    """
    modules: dict[str, nn.Module] = {}

    def note(
        call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext
    ) -> Any:
        if context.module.scope is not None:  # `init` itself is called on the unbound module
            modules.setdefault("/".join(context.module.path), context.module)
        return call(*args, **kwargs)

    def run(key: jax.Array) -> Any:  # a function of its own: no earlier trace of `init` is reused
        return init(key)

    with nn.intercept_methods(note):
        shapes = jax.eval_shape(run, jax.random.key(0))
    return paths.leaves(shapes), modules
