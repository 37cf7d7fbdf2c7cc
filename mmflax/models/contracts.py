"""What an encoder, a fusion and a published model are to the rest of the library.

`encoders/base.py` and `fusion/base.py` have base classes with defaults for every attribute, so a
module of your own declares only what differs. Shapes: `b` batch, `n` image tokens, `t` text tokens,
`d` width. Masks are boolean, true means "use".
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array


@runtime_checkable
class ImageEncoder(Protocol):
    """`(image[b h w 3], *, train) -> tokens[b n d]`, CLS first where there is one.

    Attributes:
      reads_regions: it takes features and boxes [b n f+4] instead of pixels, and `image_mask`.
      gives_layers: `layers=k` gives `(tokens, outputs of the last k layers)` instead.
      pool: the summary a head should take: "cls", "gap", "map", or "none" (no preference).
      cls_token: the first token is CLS.
      has_grid: the last tokens lie on a grid, row by row.
    """

    reads_regions: bool
    gives_layers: bool
    pool: str
    cls_token: bool

    @property
    def has_grid(self) -> bool: ...

    def grid(self) -> tuple[int, int]:
        """Rows and columns of that grid; raises without one."""
        ...

    def position_grid(self) -> tuple[int, int]:
        """Rows and columns of the table of learned positions `position_embedding`."""
        ...

    def resize_table(self, table: Any, old_grid: tuple[int, int]) -> Any:
        """Such a table [n d] of another grid for this encoder's own."""
        ...

    def num_tokens(self) -> int:
        """n, for an image of the size the encoder was built for."""
        ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class TextEncoder(Protocol):
    """`(tokens[b t], text_mask[b t], *, train) -> [b t d]`; `word_embedding` is its word table.

    Attributes:
      gives_layers: as of an image encoder.
      supports_causal: `causal=True` limits every token to itself and those before it.
      pooling: the token that its `pool(text, tokens, text_mask)` takes for the text; "none": the
        text is summarized by its first token.
      num_words: rows of its word table; 0 where it does not say.
    """

    gives_layers: bool
    supports_causal: bool
    pooling: str

    @property
    def num_words(self) -> int: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Fusion(Protocol):
    """`(image, text, image_mask, text_mask, *, train) -> Fused(image, text, pooled)`.

    A mask that is false everywhere in a row means that the modality is absent there, and nothing of
    it may reach the outputs.

    Attributes:
      num_layers_read: k > 0 reads the encoders' last k layers as `image_layers`, `text_layers`.
      num_types: rows of the table of modality types; above 2 `image_type` chooses the image's.
      supports_causal: `causal=True` keeps later words from reaching earlier ones.
    """

    num_types: int

    @property
    def num_layers_read(self) -> int: ...

    @property
    def supports_causal(self) -> bool: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class Family(Protocol):
    """A published model: `(batch, *, train) -> {name: array}`, names as in transformers."""

    def zeros(self, rows: int = 1) -> dict[str, Any]: ...

    def __call__(self, batch: Mapping[str, Any], *, train: bool = False) -> dict[str, Any]: ...


@runtime_checkable
class DualFamily(Family, Protocol):
    """A family that compares images with texts; either encoder may be None.

    Attributes:
      exclusive: the texts of an image compete (softmax) rather than stand alone (sigmoid).
    """

    image_encoder: Any
    text_encoder: Any
    exclusive: bool

    def similarity(self, image_embeds: Array, text_embeds: Array) -> Array:
        """Logits [i t] of images with texts, from embeddings of unit length."""
        ...
