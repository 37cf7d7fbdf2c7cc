"""mmflax: vision-language transformers in JAX and Flax.

>>> import mmflax
>>> run = mmflax.load("runs/shapes")          # a workdir made by `mmflax train`
>>> run.predict("photo.jpg", "what color is the circle?").answer
'red'
>>> clip = mmflax.from_pretrained("openai/clip-vit-base-patch32")   # or a folder
"""

from typing import TYPE_CHECKING, Any

from mmflax.errors import MmflaxError
from mmflax.version import __version__

if TYPE_CHECKING:
    from mmflax.run.load import from_pretrained, load

__all__ = ["MmflaxError", "__version__", "from_pretrained", "load"]


def __getattr__(name: str) -> Any:
    # Deferred, so that `import mmflax` costs nothing beyond what is used.
    if name == "load":
        from mmflax.run.load import load

        return load
    if name == "from_pretrained":
        from mmflax.run.load import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'mmflax' has no attribute {name!r}")
