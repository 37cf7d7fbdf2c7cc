"""Strict settings for the whole suite: simulated devices, no silent promotion, checked shapes."""

import atexit
import contextlib
import os
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 8)
# Many tests compile the same program: one compile each, for this run only.
_compiled = tempfile.TemporaryDirectory(prefix="mmflax-tests-")
atexit.register(_compiled.cleanup)
jax.config.update("jax_compilation_cache_dir", _compiled.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Shapes written in signatures are checked while testing and cost nothing in production.
_hook = install_import_hook(
    ["mmflax.models", "mmflax.losses", "mmflax.metrics", "mmflax.tasks"], "beartype.beartype"
)


# Folders whose tests compile without XLA's optimizations: compiling is most of what they do.
QUICK = {"inference", "models", "pretrained", "run", "tasks"}


@contextlib.contextmanager
def compiling_quickly():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def quickly(request):
    """Compile without XLA's optimizations in ``QUICK`` folders, unless marked ``optimized``."""
    optimized = request.node.get_closest_marker("optimized")
    if request.path.parent.name in QUICK | {"tests"} and not optimized:
        with compiling_quickly():
            yield
    else:
        yield


@pytest.fixture(autouse=True, scope="session")
def freed_memory_goes_back():
    """One process runs small tests after large ones: `train` must not keep what the large freed."""
    from mmflax.run import train

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "keep_freed_memory", lambda: False)
        yield


@pytest.fixture(scope="session")
def one_device():
    """A mesh of the first device."""
    from mmflax.distributed.mesh import make_mesh

    return make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="session")
def shapes_dir(tmp_path_factory):
    """Where the session's `shapes` files are prepared, once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def trained(shapes_dir, tmp_path_factory):
    """(workdir, config, result) of a tiny finished run; tests only read it."""
    from mmflax.run.train import train
    from tests import tiny

    config = tiny.config(shapes_dir)
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with compiling_quickly():
        return workdir, config, train(config, str(workdir), quiet=True)
