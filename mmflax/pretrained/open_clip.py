"""Folders of open_clip: `open_clip_config.json` in the terms of transformers' CLIP.

open_clip (github.com/mlfoundations/open_clip) describes a model by `model_cfg` and its images by
`preprocess_cfg`. Its own Vision Transformer with its own text transformer is CLIP, with the exact
GELU unless `quick_gelu` is true, and with norms of epsilon 1e-5. Every key is read, has the value
that CLIP has, or does not change the outputs; anything else is an error.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from mmflax.data.image.published import PublishedImages
from mmflax.errors import MmflaxError
from mmflax.pretrained.families import config_keys
from mmflax.pretrained.families.config_keys import FLAG, POSITIVE, SIDE, SIDES, SIZE, Key, Keys

CONFIG = "open_clip_config.json"
MODEL, IMAGES = "model_cfg", "preprocess_cfg"
EPSILON = 1e-5
# OpenAI's rule of the token that stands for a text, the highest id, as transformers writes it.
HIGHEST_ID = 2

_BLOCK: dict[str, tuple[Any, ...]] = dict(
    ls_init_value=(None,),
    act_kwargs=(None, {}),
    norm_kwargs=(None, {}),
    block_type=(None, "default"),
    qk_norm=(False, None),
    scaled_cosine_attn=(False, None),
    scale_heads=(False, None),
    scale_attn_inner=(False, None),
    scale_attn=(False, None),
    scale_fc=(False, None),
    output_tokens=(False,),
    final_ln_after_pool=(False,),
)
_VISION = Keys(
    used=dict(
        image_size=Key(SIDES, 224),
        patch_size=Key(SIDE, 16),
        layers=Key(SIZE, 12),
        width=Key(SIZE, 768),
        head_width=Key(SIZE, 64),
        mlp_ratio=Key(POSITIVE, 4.0),
    ),
    fixed=_BLOCK
    | dict(
        attentional_pool=(False,),
        global_average_pool=(False,),
        input_patchnorm=(False,),
        no_ln_pre=(False,),
        pool_type=("tok",),
        pos_embed_type=("learnable",),
        timm_model_name=(None,),
    ),
    harmless=(
        # Of training, and of poolers and towers that the keys above rule out.
        "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained",
        "timm_pool", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path",
    ),
    divisible=("width", "head_width"),
)  # fmt: skip
_TEXT = Keys(
    used=dict(
        context_length=Key(SIZE, 77),
        vocab_size=Key(SIZE, 49408),
        width=Key(SIZE, 512),
        heads=Key(SIZE, 8),
        layers=Key(SIZE, 12),
        mlp_ratio=Key(POSITIVE, 4.0),
    ),
    fixed=_BLOCK
    | dict(
        embed_cls=(False,),
        no_causal_mask=(False,),
        pool_type=("argmax",),
        proj=("linear",),
        proj_type=("linear",),
        proj_bias=(False,),
        hf_model_name=(None,),
        tokenizer_kwargs=(None, {}),
    ),
    harmless=(
        # Of other poolings, of Hugging Face's towers, and of the tokenizer, which has files.
        "pad_id", "eos_id", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
        "hf_tokenizer_name", "tokenizer_mode",
    ),
    divisible=("width", "heads"),
)  # fmt: skip
_MODEL = Keys(
    used=dict(embed_dim=Key(SIZE, None), quick_gelu=Key(FLAG, False)),
    fixed=dict(
        multimodal_cfg=(None,),
        init_logit_bias=(None,),
        nonscalar_logit_scale=(False,),
    ),
    # `custom_text` keeps the text's tensors under `text.`, which their names show.
    harmless=("custom_text", "init_logit_scale", "output_dict", "cast_dtype"),
    parts=dict(vision_cfg=_VISION, text_cfg=_TEXT),
)

# What a model that is none of these is, by the key that says so.
_OTHERS = (
    ("", "multimodal_cfg", "a CoCa, which has a decoder of captions"),
    ("", "init_logit_bias", "a SigLIP of open_clip"),
    ("vision_cfg", "timm_model_name", "a model whose image encoder is timm's"),
    ("text_cfg", "hf_model_name", "a model whose text encoder is Hugging Face's"),
)

# torchvision's filters as `preprocessor_config.json` numbers them.
_FILTERS = {"bicubic": 3, "bilinear": 2}


def exists(folder: epath.PathLike) -> bool:
    """Whether a folder has a config of open_clip."""
    return (epath.Path(folder) / CONFIG).exists()


def read(folder: epath.PathLike) -> dict[str, Any]:
    """The folder's `open_clip_config.json`, with an object `model_cfg`.

    Raises:
      MmflaxError: it is no such file.
    """
    path = epath.Path(folder) / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise MmflaxError(f"{path} is not JSON ({error}).") from error
    if isinstance(config, dict) and "vision_cfg" in config:
        config = {MODEL: config}  # a file of open_clip/model_configs
    if not isinstance(config, dict) or not isinstance(config.get(MODEL), dict):
        raise MmflaxError(
            f"{path} has no object {MODEL}; expected {MODEL} and {IMAGES}, as open_clip saves them."
        )
    return config


def clip_config(folder: epath.PathLike, may_ignore_keys: Sequence[str] = ()) -> dict[str, Any]:
    """The `config.json` of transformers' CLIPModel for the folder's `model_cfg`.

    Args:
      folder: with `open_clip_config.json`.
      may_ignore_keys: keys of `model_cfg` (`vision_cfg.x` for x inside a part) that are left out.

    Raises:
      MmflaxError: the model is not CLIP's Vision Transformer with CLIP's text transformer.
    """
    given = config_keys.without(read(folder)[MODEL], may_ignore_keys)
    source = f"{epath.Path(folder) / CONFIG}: {MODEL}"
    for part, key, what in _OTHERS:
        values = given.get(part) if part else given
        if isinstance(values, Mapping) and values.get(key) is not None:
            raise MmflaxError(
                f"{source} has {f'{part}.{key}'.lstrip('.')}: it describes {what}; of open_clip "
                "the Vision Transformer with the text transformer of CLIP is read."
            )
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(given.get(part), Mapping):
            raise MmflaxError(f"{source} has no object {part}; expected vision_cfg and text_cfg.")
    if isinstance(given["vision_cfg"].get("layers"), list):
        raise MmflaxError(
            f"{source}.vision_cfg.layers is {given['vision_cfg']['layers']}: the image encoder is "
            "a ResNet, which is not read; expected a Vision Transformer, whose layers are a number."
        )
    if given.get("embed_dim") is None:
        raise MmflaxError(f"{source} has no embed_dim; expected the size of the embeddings.")
    config_keys.checked(given, _MODEL, source, "clip")
    config = config_keys.completed(given, _MODEL)
    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if config["quick_gelu"] else "gelu"

    def side(values: Mapping[str, Any], heads: int) -> dict[str, Any]:
        return dict(
            hidden_size=values["width"],
            intermediate_size=int(values["width"] * values["mlp_ratio"]),
            num_hidden_layers=values["layers"],
            num_attention_heads=heads,
            hidden_act=activation,
            layer_norm_eps=EPSILON,
            projection_dim=config["embed_dim"],
        )

    return dict(
        model_type="clip",
        projection_dim=config["embed_dim"],
        vision_config=dict(
            model_type="clip_vision_model",
            **side(vision, vision["width"] // vision["head_width"]),
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
        ),
        text_config=dict(
            model_type="clip_text_model",
            **side(text, text["heads"]),
            max_position_embeddings=text["context_length"],
            vocab_size=text["vocab_size"],
            eos_token_id=HIGHEST_ID,
        ),
    )


def images(folder: epath.PathLike) -> PublishedImages:
    """The images' preprocessing: open_clip's, by `preprocess_cfg`, of the model's image size.

    Raises:
      MmflaxError: a key or a value that is not understood.
    """
    config, source = read(folder), f"{epath.Path(folder) / CONFIG}: {IMAGES}"
    given = config.get(IMAGES) or {}
    known = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
    strange = [key for key in given if key not in known]
    if strange:
        raise MmflaxError(
            f"{source} has {strange[0]!r}, which may change the pixels; known: {', '.join(known)}."
        )
    values = {key: value for key, value in given.items() if value is not None}
    for key, allowed in (
        ("mode", ("RGB",)),
        ("interpolation", tuple(_FILTERS)),
        ("resize_mode", ("shortest", "squash")),
    ):
        if values.get(key, allowed[0]) not in allowed:
            raise MmflaxError(
                f"{source}.{key} is {values[key]!r}; expected {' or '.join(allowed)}."
            )
    # open_clip takes the model's size whatever `preprocess_cfg` has.
    vision = config[MODEL].get("vision_cfg") or {}
    size = vision.get("image_size") or values.get("size") or 224
    if isinstance(size, Sequence) and len(size) == 3:
        size = size[1:]  # channels first
    if not SIDES.accepts(size):
        raise MmflaxError(f"{source}.size is {size!r}; expected {SIDES.expected}.")
    height, width = (size, size) if isinstance(size, int) else size
    squash = values.get("resize_mode") == "squash"
    if not squash and height != width:
        raise MmflaxError(
            f"{source} cuts images of {height} x {width} pixels; expected squares, or resize_mode "
            "squash."
        )
    sides = {"height": height, "width": width}
    clip = dict(
        image_processor_type="CLIPImageProcessor",
        size=sides if squash else {"shortest_edge": height},
        crop_size=sides,
        do_center_crop=not squash,
        resample=_FILTERS[values.get("interpolation", "bicubic")],
        **{f"image_{key}": values[key] for key in ("mean", "std") if key in values},
    )
    pixels = PublishedImages.from_config(clip, "clip", source)
    # torchvision's CenterCrop rounds half a pixel to even, where transformers' processor rounds
    # down, and PIL's conversion drops the alpha.
    return dataclasses.replace(pixels, floor_crop=False, white=False)
