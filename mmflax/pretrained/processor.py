"""Raw images and texts to the arrays that a public checkpoint was trained with.

>>> processor = PublishedProcessor.load("path/to/clip-vit-base-patch32")
>>> batch = processor.batch(images=["cat.jpg"], texts=["a photo of a cat"])
>>> batch["image"].shape, batch["tokens"].shape
((1, 224, 224, 3), (1, 77))
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from etils import epath

from mmflax.data.batch import Batch
from mmflax.data.image.published import PublishedImages, Size
from mmflax.data.processor import Processor
from mmflax.data.text import tokenizer_files as files
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.pretrained import hub, open_clip

IMAGES, WHOLE = "preprocessor_config.json", "processor_config.json"
_TOKENIZER = (files.JSON, files.VOCABULARY, files.BPE_VOCABULARY, files.SPIECE)
_FILES = (
    IMAGES, WHOLE, files.CONFIG, files.SPECIAL, files.ADDED, files.MERGES, *_TOKENIZER,
)  # fmt: skip
_LENGTH = "mmflax_max_length"  # a key of ours in tokenizer_config.json
_ALIGN_LENGTH = 64  # ALIGN's own processor cuts texts there, whatever its tokenizer has
# Models that have no table of token types although their tokenizer knows them, or a table of one.
_WITHOUT_TYPES = ("blip", "bridgetower", "distilbert", "meter", "roberta", "xlm_roberta")


@dataclasses.dataclass(frozen=True)
class PublishedProcessor:
    """The preprocessing of a public checkpoint, as transformers does it with PIL.

    Shapes are always the same, so that nothing compiles twice: texts are padded to `max_length`,
    and images of families that keep the aspect ratio to one canvas.

    Attributes:
      tokenizer: None where the checkpoint reads no text.
      pixels: None where it reads no images (or regions, of a detector).
      max_length: tokens of a text with its special tokens; 0 without a tokenizer.
      token_types: whether the model has a table of token types.
      files: name -> bytes of what it was loaded from.
    """

    tokenizer: Tokenizer | None
    pixels: PublishedImages | None
    max_length: int
    token_types: bool
    files: Mapping[str, bytes] = dataclasses.field(repr=False, compare=False)

    @classmethod
    def load(
        cls,
        directory: epath.PathLike,
        *,
        max_length: int | None = None,
        described: Mapping[str, Any] | None = None,
    ) -> Self:
        """From the files beside a checkpoint's weights.

        Args:
          directory: with `preprocessor_config.json` or a `processor_config.json` for images, and
            `tokenizer.json` or older files for texts; either may be absent.
          max_length: None is the tokenizer's, at most what the model has positions for.
          described: the model's config where there is no config.json; None reads open_clip's.

        Raises:
          MmflaxError: what is missing or not understood.
        """
        root = epath.Path(directory)
        config = files.read_json(root / files.MODEL_CONFIG)
        if not config and (described or open_clip.exists(root)):
            config = dict(described or open_clip.clip_config(root))
        model_type = files.family(config)
        image_config, name = _image_config(root)
        if not cls.exists(root):
            raise MmflaxError(
                f"{root} has no preprocessing; expected {IMAGES} or {WHOLE} for images, or "
                f"{', '.join(_TOKENIZER)} for texts."
            )
        pixels = None
        if image_config is not None:
            pixels = PublishedImages.from_config(image_config, model_type, str(root / name))
        elif open_clip.exists(root):
            pixels = open_clip.images(root)
        tokenizer, length, types = None, 0, False
        if _has_tokenizer(root):
            tokenizer = Tokenizer.load(root)
            given = files.read_json(root / files.CONFIG)
            length = max_length or given.get(_LENGTH) or _length(tokenizer, config, root)
            types = _has_types(tokenizer, model_type, config, given)
            around = tokenizer.template.num_special(False)
            if length <= around:
                raise MmflaxError(
                    f"max_length is {length}; it must be more than the {around} special tokens."
                )
        names = [*_FILES, files.MODEL_CONFIG, open_clip.CONFIG]
        kept = {name: (root / name).read_bytes() for name in names if (root / name).exists()}
        return cls(tokenizer, pixels, length, types, kept)

    @staticmethod
    def exists(directory: epath.PathLike) -> bool:
        """Whether a directory has anything that `load` reads."""
        root = epath.Path(directory)
        return root.is_dir() and (
            _image_config(root)[0] is not None or _has_tokenizer(root) or open_clip.exists(root)
        )

    def images(self, images: Sequence[Any], *, canvas: Size | str | None = None) -> Batch:
        """`image` float32 [b h w 3], and `pixel_mask` bool [b h w] of families that pad.

        `images` and `canvas` are those of `PublishedImages.__call__`.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            raise MmflaxError(f"images is {type(images).__name__}; give a list of images.")
        return self._required_pixels()(images, canvas)

    def texts(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Batch:
        """`tokens` int32 [b t], `text_mask` bool [b t], and `token_types` int32 [b t] if used.

        Args:
          texts: the texts; too long ones lose their end.
          pairs: a second text for each, read together with it.
        """
        tokenizer = self._required_tokenizer()
        for given in (texts, () if pairs is None else pairs):
            if isinstance(given, str) or not all(isinstance(text, str) for text in given):
                raise MmflaxError(f"The texts are {given!r}; give a list of str.")
        if pairs is not None and len(pairs) != len(texts):
            raise MmflaxError(f"There are {len(texts)} texts and {len(pairs)} pairs; give as many.")
        shape = (len(texts), self.max_length)
        tokens, types = np.full(shape, tokenizer.pad_id, np.int32), np.zeros(shape, np.int32)
        mask = np.full(shape, tokenizer.reads_padding)
        for row, text in enumerate(texts):
            second = None if pairs is None else pairs[row]
            ids, segments = tokenizer.ids_and_types(text, self.max_length, second)
            tokens[row, : len(ids)] = ids
            types[row, : len(ids)] = segments
            mask[row, : len(ids)] = True
        batch = {"tokens": tokens, "text_mask": mask}
        return {**batch, "token_types": types} if self.token_types else batch

    def batch(
        self,
        images: Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        pairs: Sequence[str] | None = None,
        *,
        canvas: Size | str | None = None,
    ) -> Batch:
        """Images and texts in one batch; see `images` and `texts`. They need not be as many."""
        if images is None and texts is None:
            raise MmflaxError("There is nothing to make a batch of; give images, texts or both.")
        batch = {} if images is None else self.images(images, canvas=canvas)
        return batch if texts is None else {**batch, **self.texts(texts, pairs)}

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of ids, without special tokens."""
        return self._required_tokenizer().decode(tokens)

    def save(self, directory: epath.PathLike) -> None:
        """Writes the files it was loaded from, so that `load` and transformers find them.

        `config.json`, which names the family, is only written where there is none.
        """
        root = epath.Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        kept = dict(self.files)
        if self.tokenizer is not None:
            config = json.loads(kept.get(files.CONFIG, b"{}"))
            config[_LENGTH] = self.max_length
            kept[files.CONFIG] = json.dumps(config, indent=1, ensure_ascii=False).encode()
        if (root / files.MODEL_CONFIG).exists():
            kept.pop(files.MODEL_CONFIG, None)
        for name, contents in kept.items():
            (root / name).write_bytes(contents)

    @classmethod
    def with_images(cls, config: Mapping[str, Any], source: str, texts: Self | None) -> Self:
        """`texts` with the images of a `preprocessor_config.json`; `source` is for messages."""
        texts = texts or cls(None, None, 0, False, {})
        pixels = PublishedImages.from_config(config, source=source)
        kept = {**texts.files, IMAGES: json.dumps(config, indent=1).encode()}
        return dataclasses.replace(texts, pixels=pixels, files=kept)

    @classmethod
    def of_checkpoint(cls, source: str) -> Self:
        """The preprocessing beside the weights that ``processor.from`` names."""
        root = hub.locate(source)
        folder = root if root.is_dir() else root.parent
        if not cls.exists(folder):
            raise MmflaxError(
                f"processor.from is {source}, which has neither a tokenizer nor a "
                "preprocessor_config.json; copy them beside its weights."
            )
        return cls.load(folder)

    def as_processor(
        self, answers: Sequence[str] = (), *, max_length: int | None = None, **fields: Any
    ) -> Processor:
        """The ordinary training processor with this preprocessing, to fine-tune with.

        It reads files as this one does; a PIL image it also turns upright, and drops its alpha.

        Args:
          answers: label `i` means `answers[i]`; another spelling of one has its label.
          max_length: None is this processor's.
          **fields: further ones of `Processor`.

        Raises:
          MmflaxError: the family's preprocessing is not one to a fixed square.
        """
        self._required_pixels()
        own = {
            "tokenizer": self._required_tokenizer(),
            "max_length": max_length or self.max_length,
            "answers": tuple(answers),
            "normalize_answers": "vqa",
        }
        return Processor(**{**self.image_fields(), **own, **fields})

    def image_fields(self) -> dict[str, Any]:
        """Keywords of a `Processor` that does the same to images; none where it reads none."""
        return {} if self.pixels is None else {**_square_fields(self.pixels), "draft": False}

    def _required_pixels(self) -> PublishedImages:
        if self.pixels is None:
            raise MmflaxError(
                f"This checkpoint has no image preprocessing ({IMAGES}): it reads no images, or "
                "the regions of a detector (give `regions` and `boxes`)."
            )
        return self.pixels

    def _required_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise MmflaxError(
                f"This checkpoint has no tokenizer ({', '.join(_TOKENIZER)}): it reads no texts, "
                "or the tokenizer's files have to be copied beside its weights."
            )
        return self.tokenizer


def _has_tokenizer(root: epath.Path) -> bool:
    return any((root / name).exists() for name in _TOKENIZER)


def _image_config(root: epath.Path) -> tuple[dict[str, Any] | None, str]:
    """The config of the images and its file; transformers 5 may write one for images and texts."""
    whole = files.read_json(root / WHOLE).get("image_processor")
    if isinstance(whole, dict):
        return whole, WHOLE
    return (files.read_json(root / IMAGES) if (root / IMAGES).exists() else None), IMAGES


def _length(tokenizer: Tokenizer, config: Mapping[str, Any], root: epath.Path) -> int:
    """The tokenizer's longest text, at most the number of positions of the model."""
    limits = [tokenizer.max_length] if tokenizer.max_length else []
    text = config.get("text_config") or config
    positions = text.get("max_position_embeddings")
    if isinstance(positions, int) and positions > 0:
        limits.append(positions - files.position_offset(config, tokenizer.kind, tokenizer.pad_id))
    if files.family(config) == "align":
        limits.append(_ALIGN_LENGTH)
    if not limits:
        raise MmflaxError(
            f"{root} does not say how long a text may be (model_max_length in {files.CONFIG}); "
            "give max_length."
        )
    return min(limits)


def _has_types(
    tokenizer: Tokenizer, model_type: str, config: Mapping[str, Any], given: Mapping[str, Any]
) -> bool:
    text = config.get("text_config") or config
    if model_type in _WITHOUT_TYPES:
        return False
    if "type_vocab_size" in text:
        return int(text["type_vocab_size"]) > 1
    if "model_input_names" in given:
        return "token_type_ids" in given["model_input_names"]
    return tokenizer.kind in ("bert", "albert")


def _square_fields(pixels: PublishedImages) -> dict[str, Any]:
    """Fields of an equal `Processor`; raises MmflaxError where there is none."""
    resize, end = pixels.resize, pixels.largest()
    odd = None
    if resize is None:
        odd = "do not resize"
    elif (
        end is None
        or end[0] != end[1]
        or (resize.how == "squash" and resize.height != resize.width)
    ):
        odd = "are not square"
    elif not pixels.crops and resize.how != "squash":
        odd = "keep their aspect ratio and are padded"
    elif len(pixels.crops) > 1:
        odd = "are cropped twice"
    elif resize.how == "divisible" and resize.divisor != 32:
        odd = f"have sides that are multiples of {resize.divisor}"
    if odd is not None or resize is None or end is None:
        raise MmflaxError(
            f"This checkpoint's images {odd}, which a Processor cannot do; make batches with "
            "PublishedProcessor.images instead, or build a Processor of your own."
        )
    mean, std = pixels.mean, pixels.std
    if mean is None or pixels.factor != 1 / 255 or pixels.offset or pixels.std_twice:
        slope, start = pixels.scale_and_shift()
        wide = 1 / (255 * slope)
        mean, std = tuple(map(float, -start * wide)), tuple(map(float, wide))
    return {
        "image_size": end[0],
        "resize": resize.how,
        "resize_to": 0 if resize.height == end[0] else resize.height,
        "floor_crop": pixels.floor_crop,
        "filter": pixels.filter,
        "mean": mean,
        "std": std,
    }
