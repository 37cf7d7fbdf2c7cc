"""What a checkpoint decides of a task's fields: its head, its decoder, how vectors are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.models.decoder.decoder import build as build_decoder
from mmflax.run.finetune.parts import module_fields, sizes_of
from mmflax.run.finetune.recipes import NEW_RATE, READ_PIXELS
from mmflax.run.finetune.sources import RUN, Choice, Found

# task -> the modules beside the backbone that it may have.
_MODULES = {
    "generation": ("decoder", "memory"),
    "retrieval": ("image_projection", "text_projection", "temperature"),
}

# Its first axis is what a published decoder reads.
_READ = "decoder/layers_0/cross_attention/key/kernel"
_STREAMS = {
    "image": "the image", "fused_text": "the text that has read the image",
    "fused": "the image and the text after a new fusion",
}  # fmt: skip


def modules(task: Mapping[str, Any]) -> list[str]:
    """The modules that the task has beside the model's parts."""
    name = task.get("name")
    if name == "generation" and not task.get("memory_projected", True):
        return ["decoder"]
    if name != "retrieval":
        return list(_MODULES.get(str(name), ("head",)))
    kept = [
        one
        for one in _MODULES["retrieval"]
        if not one.endswith("projection") or task.get(one, "linear") != "none"
    ]
    if task.get("image_pool") == "map":
        kept.append("image_head")
    return [*kept, "match_head"] if task.get("fused") else kept


def new_modules(choice: Choice) -> list[str]:
    """Those of them that no source has."""
    known = {name for one in choice.found.values() for name in one.tops} - {"head"}
    # The same number under two names; ALIGN's `temperature` is another.
    known = known - {"temperature"} | ({"temperature"} if "logit_scale" in known else set())
    if getattr(choice.image.modules.get(""), "task", "") == "pair":
        known -= {"image_projection", "text_projection"}  # BLIP's are of other vectors
    if choice.image.family != RUN:
        known -= {"memory"} | (set() if choice.keeps_decoder else {"decoder"})
    return [name for name in modules(choice.config["task"]) if name not in known]


def fields(choice: Choice) -> dict[str, Any]:
    """Of the task; the config's own go before them."""
    name = choice.config["task"].get("name")
    if name == "generation":
        return _writer(choice)
    if name == "retrieval":
        return _search(choice)
    head = dict(choice.recipe.of("head_fields", choice.task))
    one = choice.found.get("fusion")
    if one is not None and one.family == RUN:
        return {k: v for k, v in one.config["task"].items() if k == "head"}
    hidden = head.pop("hidden", None)
    if hidden is not None:
        head["hidden_dim"] = hidden * int(choice.config["model"]["fusion"]["width"])
    return {"head": head} if head else {}


def rates(choice: Choice, peak: float, head: float) -> list[tuple[str, float]]:
    """(path regex, factor) of what the task adds, which is new."""
    name = choice.config["task"].get("name")
    if name == "generation":
        new = new_modules(choice)
        return [(rf"^({'|'.join(new)})/", round(NEW_RATE / peak, 3))] if new else []
    if name == "retrieval":
        new = [] if choice.is_pair else ["image_projection", "text_projection"]
        new += ["match_head"] if choice.config["task"].get("fused") else []
        return [(rf"^({'|'.join(new)})/", 10.0)] if new else []
    return [] if head == 1 else [(r"(^|/)head/", head)]


def _writer(choice: Choice) -> dict[str, Any]:
    """The checkpoint's decoder, or one over the fused tokens, half as deep as the text encoder."""
    if choice.writer is not None and (own := _published_writer(choice, choice.writer)):
        return own
    one = choice.text
    tokenizer = None
    if one is not None and one.opened.model is not None:
        tokenizer = getattr(one.opened.model.processor, "tokenizer", None)
    if one is not None and tokenizer is not None and None in (tokenizer.cls_id, tokenizer.sep_id):
        raise MmflaxError(
            f"{one} ({one.family}) does not fit {choice.task}: its tokenizer has no tokens that "
            f"begin and end a text, so nothing can be written with it; start from "
            f"{READ_PIXELS.replace('SigLIP, ', '')}."
        )
    text = choice.text_sizes
    shared = one is None or sizes_of(one.modules["text_encoder"]) is not None
    depth = text.depth or int(choice.config["model"]["fusion"].get("depth") or 12)
    decoder: dict[str, Any] = dict(
        depth=max(1, min(6, depth // 2)), width=text.width, num_heads=text.num_heads,
        mlp_dim=4 * text.width, norm_style="pre", dropout_rate=0.1,
    )  # fmt: skip
    if choice.dtype is not None:
        decoder["dtype"] = choice.dtype
    table = "text_encoder" if shared else "own"
    return dict(memory=("fused",), table=table, decoder=decoder)


def _published_writer(choice: Choice, one: Found) -> dict[str, Any]:
    """The fields of a checkpoint's own decoder, which reads on what it read; none where it cannot
    read what the task has."""
    if one.family == RUN:
        names = ("memory", "memory_projected", "table", "begin", "decoder")
        choice.keeps_decoder = True
        return {name: one.config["task"][name] for name in names if name in one.config["task"]}
    module, family = (one.modules[name] for name in ("decoder", ""))
    read = int(one.opened.parameters[_READ].shape[0])
    fused = choice.found.get("fusion") is not None
    known = "fused_text" if family.task == "answer" else "image"
    memory = "image" if choice.task == "captioning" else "fused_text" if fused else "fused"
    width = choice.encoder.width if memory == "image" else choice.text_sizes.width
    as_it_is = memory != "fused" and width == read
    if not as_it_is and module.width != read:
        choice.notes.append(
            f"the decoder of {one} reads vectors of {read} numbers, which {choice.task} has not "
            "for it: a new one is trained"
        )
        return {}
    if memory != known:
        choice.notes.append(f"the decoder of {one} read {_STREAMS[known]}; here {_STREAMS[memory]}")
    decoder = module_fields(build_decoder, module)
    if choice.dtype is not None:
        decoder["dtype"] = choice.dtype
    choice.keeps_decoder = True
    return dict(
        memory=(memory,), memory_projected=not as_it_is, table="own", begin=family.limits.begin,
        decoder=decoder,
    )  # fmt: skip


def _search(choice: Choice) -> dict[str, Any]:
    """A pair of encoders is compared as it was trained; others learn a space, and re-rank."""
    if not choice.is_pair:
        return dict(embed_dim=256, fused=True)
    one = choice.image
    if one.family == RUN:
        return {k: v for k, v in one.config["task"].items() if k != "name"}
    pair: Any = one.modules.get("")
    width = int(getattr(pair, "projection", 0) or 0)
    if one.family == "clip" and width:
        return dict(embed_dim=width, loss="clip", temperature_init=0.07, max_scale=100.0)
    if one.family == "siglip":
        return dict(
            embed_dim=width or choice.text_sizes.width, loss="sigmoid", temperature_init=0.1,
            bias_init=-10.0, max_scale=None, image_pool="map", image_projection="none",
            text_projection="affine",
        )  # fmt: skip
    if one.family == "align" and width:
        learned = one.opened.parameters["temperature"].read()
        return dict(
            embed_dim=width, loss="clip", temperature_init=float(learned), max_scale=None,
            image_pool=pair.image_pool, text_pool="cls", image_projection="none",
            text_projection="affine",
        )  # fmt: skip
    kind = "affine" if getattr(pair, "task", "") == "matching" else "linear"
    return dict(embed_dim=width or 256, image_projection=kind, text_projection=kind)
