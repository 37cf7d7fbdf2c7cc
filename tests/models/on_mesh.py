"""An encoder of images on a mesh of eight devices beside one."""

import jax
import numpy as np

from mmflax.distributed.mesh import RULES, activation_rules, make_mesh, param_specs, with_rules


def same_tokens(model, image, atol):
    """Checks that the tokens on a 2x2x2 mesh are those of one device; the parameters' shardings."""
    params = jax.jit(lambda: model.init(jax.random.key(0), image, train=False))()["params"]
    mesh = make_mesh(2, 2, 2)
    specs = param_specs(params, with_rules(()), mesh)
    assert param_specs(params, RULES, mesh) == specs

    def run(params):
        return model.apply({"params": params}, image, train=False)

    expected = jax.jit(run)(params)
    with activation_rules(mesh):
        found = jax.jit(run)(jax.device_put(params, specs))
    np.testing.assert_allclose(found, expected, atol=atol)
    return specs
