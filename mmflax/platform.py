"""Which kind of device the code being traced will run on."""

import jax


def platform() -> str:
    """Such as "cpu" or "tpu": the mesh's, which may be another machine's, or this process's."""
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return getattr(device, "platform", None) or jax.default_backend()
