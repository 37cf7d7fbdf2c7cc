"""mmflax: vision-language transformers in JAX and Flax.

>>> import mmflax
>>> run = mmflax.load("runs/shapes")          # a workdir made by `mmflax train`
>>> run.predict("photo.jpg", "what color is the circle?").answer
'red'
"""

from typing import TYPE_CHECKING, Any

from mmflax.errors import MmflaxError
from mmflax.version import __version__

if TYPE_CHECKING:
    from mmflax.experiment import load

__all__ = ["MmflaxError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # Deferred, so that `import mmflax` costs nothing beyond what is used.
    if name == "load":
        from mmflax.experiment import load

        return load
    raise AttributeError(f"module 'mmflax' has no attribute {name!r}")
