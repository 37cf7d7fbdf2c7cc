"""What a checkpoint decides of the processor: tokenizer, image size, normalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError, option
from mmflax.run.finetune.parts import field_of
from mmflax.run.finetune.recipes import PIXELS, WORDS
from mmflax.run.finetune.sources import Choice, Found
from mmflax.run.former import FormerProcessor
from mmflax.run.init_inputs import normalization

_IMAGES = ("resize", "resize_to", "floor_crop", "filter", "mean", "std")


def fields(choice: Choice, given: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``processor``; what is given goes before the rest."""
    own: dict[str, Any] = {}
    words = choice.text or (choice.writer if choice.keeps_decoder else None)
    if words is not None:
        own |= _words(words, given)
    if not choice.encoder.reads_regions:
        own |= _pixels(choice, given)
    return {**own, **{key: value for key, value in given.items() if value not in ("", ())}}


def _words(one: Found, given: Mapping[str, Any]) -> dict[str, Any]:
    """Whose tokenizer, and how the words' ids are made."""
    if given.get("from"):
        return {}
    model = one.opened.model
    if model is None or getattr(model.processor, "tokenizer", None) is None:
        known = WORDS.get(one.family, "the model that it was made from")
        why = f" ({model.unread})" if model is not None and model.unread else ""
        raise MmflaxError(
            f"{one} has no tokenizer that can be read{why}; put the tokenizer's files of {known} "
            f"beside its weights, or name where they are: --config.processor.from={known}."
        )
    return {"from": one.source.path}


def _pixels(choice: Choice, given: Mapping[str, Any]) -> dict[str, Any]:
    """How an image is made, in the size of the checkpoint's own positions."""
    one = choice.image
    found = _published(choice, one)
    size = _side(field_of(choice.encoder, "image_size"))
    grows = one.family in ("resnet", "vgg", "align")  # convolutions take any size
    if size is not None and not (grows and found.get("image_size")):
        if found.get("image_size") != size:
            found = {**found, "image_size": size, "resize_to": 0}
    asked = given.get("image_size")
    if asked is not None and asked != found.get("image_size"):
        if not choice.config["model"]["image_encoder"].get("crop"):
            _check_patches(choice.encoder, asked)
        found["resize_to"] = 0
        if size is not None and not grows:
            choice.notes.append(
                f"images are {asked} pixels a side, {size} in {one}: positions are resampled"
            )
    return found


def _published(choice: Choice, one: Found) -> dict[str, Any]:
    """Fields of the processor that does to images what the checkpoint's own does."""
    processor = None if one.opened.model is None else one.opened.model.processor
    if isinstance(processor, Processor):
        found = FormerProcessor(processor).image_fields()
        return {key: value for key, value in found.items() if key != "draft"}
    if processor is not None and processor.pixels is not None:
        try:
            found = processor.image_fields()
            return {key: found[key] for key in ("image_size", *_IMAGES)}
        except MmflaxError:  # they keep their shape, as ViLT's
            choice.notes.append(
                f"images are squeezed to a square, where those of {one} keep their shape"
            )
            known = normalization(processor)
            assert known is not None
            mean, std = (tuple(float(x) for x in value) for value in known)
            return dict(resize="squash", filter=processor.pixels.filter, mean=mean, std=std)
    mean, std = PIXELS.get(one.family, PIXELS["vit"])
    choice.notes.append(
        f"{one} has no preprocessor_config.json: images are normalized as those of "
        f"{one.family} are as a rule, with mean {mean} and std {std}"
    )
    return dict(resize="squash", filter="bicubic", mean=mean, std=std)


def _side(size: Any) -> int | None:
    """A side of a square; None for what is no square."""
    if isinstance(size, (tuple, list)):
        return int(size[0]) if len(size) == 2 and size[0] == size[1] else None
    return size if isinstance(size, int) else None


def _check_patches(encoder: Any, size: Any) -> None:
    """Raises for a size that does not divide into the checkpoint's patches."""
    patch = field_of(encoder, "patch_size")
    if not isinstance(patch, int) or not isinstance(size, int):
        return
    if size % patch or size < patch:
        near = max(1, round(size / patch)) * patch
        raise MmflaxError(
            f"processor.image_size is {size}, which does not divide into the checkpoint's patches "
            f"of {patch} pixels; give {option('processor.image_size', near)}."
        )


def line(choice: Choice) -> str:
    """What images and texts become, for people."""
    processor = choice.config["processor"]
    if processor.get("image_size"):
        images = f"images of {processor['image_size']} pixels ({processor.get('resize')})"
    else:
        images = "a detector's regions"
    fixed = processor.get("max_length")
    if fixed:
        return f"{images}, texts of {fixed} tokens"
    model = None if choice.text is None else choice.text.opened.model
    most = getattr(getattr(model, "processor", None), "max_length", None)
    return f"{images}, texts as long as yours are{f', at most {most} tokens' if most else ''}"
