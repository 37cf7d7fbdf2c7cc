"""CLIPs as OpenAI and open_clip publish them, without a config.json of transformers."""

import json

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from mmflax.errors import MmflaxError
from mmflax.pretrained import hub, open_clip
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.families.clip import names as clip
from mmflax.pretrained.inspect import inspect
from mmflax.pretrained.processor import PublishedProcessor
from mmflax.pretrained.tensors import open_tensors
from mmflax.run import init_sources
from tests.pretrained import cases, torch_files
from tests.pretrained.test_wrapped import scripted

RECORDED = "clip-openai"
NUMBERS = {"input_resolution": 16, "context_length": 9, "vocab_size": 29}
# The recorded model's, whose heads are 4 and 5 wide.
MODEL = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 16, "head_width": 4, "patch_size": 4},
    "text_cfg": {"context_length": 9, "vocab_size": 29, "width": 20, "heads": 4, "layers": 2},
}
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic"}


@pytest.fixture(scope="module")
def weights():
    return dict(open_tensors(cases.GOLDEN / RECORDED))


def numbers():
    return {name: np.array(value, np.int64) for name, value in NUMBERS.items()}


def folder(path, tensors, model=MODEL, images=IMAGES, file="open_clip_model.safetensors"):
    """A folder as open_clip saves it."""
    config = {"model_cfg": model, "preprocess_cfg": images}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    if file.endswith(".safetensors"):
        save_file(tensors, path / file)
    else:
        torch_files.save(tensors, path / file)
    return path


def changed(part="", **keys):
    """The model's config with these keys in one of its parts."""
    values = MODEL | keys if not part else MODEL | {part: MODEL[part] | keys}
    return {name: value for name, value in values.items() if value != "absent"}


def same_outputs(found, golden="clip/openai"):
    _, batch, expected = cases.load_golden(golden)
    outputs = jax.jit(found.model.apply)({"params": found.params}, batch)
    for name in ("logits_per_image", "image_embeds", "text_embeds"):
        np.testing.assert_allclose(outputs[name], expected[name], rtol=2e-5, atol=2e-5)


ORIGINALS = {
    "TorchScript": lambda w: scripted({**w, **numbers()}),
    "state dict": lambda w: {**w, **numbers()},
    "nested": lambda w: {"state_dict": {f"module.{k}": x for k, x in {**w, **numbers()}.items()}},
}


@pytest.mark.parametrize("form", ORIGINALS)
def test_openais_file_alone_is_the_model_with_a_config(form, weights, tmp_path, monkeypatch):
    # The recorded heads are not 64 wide, so their number is said for once.
    monkeypatch.setattr("mmflax.pretrained.families.configs.heads_of", lambda width, _: 4)
    torch_files.save(ORIGINALS[form](weights), tmp_path / "ViT-B-32.pt")
    found = inspect(tmp_path / "ViT-B-32.pt")
    assert found.fields == inspect(cases.GOLDEN / RECORDED).fields
    if form == "TorchScript":
        found = from_pretrained(tmp_path / "ViT-B-32.pt")
        same_outputs(found)
        pixels = found.processor.pixels
        assert (pixels.filter, pixels.crops, pixels.mean) == ("bicubic", ((16, 16),), OPENAI_MEAN)
        found.save(tmp_path / "copy")
        assert from_pretrained(tmp_path / "copy").processor.pixels == pixels


def shapes_of_original(vision=128, text=64, depth=3):
    def tower(prefix, width, layers):
        block = {"mlp.c_fc.weight": (4 * width, width), "ln_1.weight": (width,)}
        return {
            f"{prefix}transformer.resblocks.{i}.{name}": shape
            for i in range(layers)
            for name, shape in block.items()
        }

    return {
        **tower("visual.", vision, depth),
        **tower("", text, 11),
        **{name: () for name in NUMBERS},
        "visual.class_embedding": (vision,),
        "visual.conv1.weight": (vision, 3, 14, 14),
        "visual.positional_embedding": (24 * 24 + 1, vision),
        "positional_embedding": (77, text),
        "token_embedding.weight": (49408, text),
        "ln_final.weight": (text,),
        "text_projection": (text, 32),
    }


def test_every_size_is_read_from_the_shapes():
    found = clip.fields(*_completed(clip.recognize(shapes_of_original())))
    image, text = found["image_encoder"], found["text_encoder"]
    assert found["projection"] == 32
    assert (image["image_size"], image["patch_size"]) == (336, 14)
    sizes = ("width", "depth", "num_heads", "mlp_dim", "activation", "epsilon")
    assert [image[name] for name in sizes] == [128, 3, 2, 512, "quick_gelu", 1e-5]
    assert [text[name] for name in sizes] == [64, 11, 1, 256, "quick_gelu", 1e-5]
    assert (text["max_length"], text["vocab_size"], text["end_token"]) == (77, 49408, None)


def _completed(config):
    from mmflax.pretrained import families

    return families.completed("clip", config), list(shapes_of_original())


def without(*names):
    return {k: v for k, v in shapes_of_original().items() if k not in names}


UNKNOWN = {
    "open_clip's": (without(*NUMBERS), "whether its activation is gelu or quick_gelu is unknown"),
    "ResNet": (
        {"visual.layer1.0.conv1.weight": (64, 64, 1, 1), "token_embedding.weight": (29, 64)},
        "whose image encoder is a ResNet",
    ),
    "no square": (
        shapes_of_original() | {"visual.positional_embedding": (7, 128)},
        "6 positions of patches, which form no square",
    ),
    "heads": (shapes_of_original(vision=100), "100 wide, which is not a multiple of 64"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_shapes_do_not_tell_is_asked_for(name):
    shapes, message = UNKNOWN[name]
    with pytest.raises(MmflaxError, match=message):
        clip.recognize(shapes)


def test_other_models_are_left_to_other_families():
    assert clip.recognize({"visual_projection.weight": (3, 3)}) is None
    assert clip.recognize({"token_embedding.weight": (3, 3)}) is None


FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")


@pytest.mark.parametrize("file", FILES)
def test_a_folder_of_open_clip_is_the_recorded_model(file, weights, tmp_path):
    folder(tmp_path, weights, file=file)
    assert inspect(tmp_path).fields == inspect(cases.GOLDEN / RECORDED).fields
    assert inspect(tmp_path / file).fields == inspect(tmp_path).fields
    if file != FILES[0]:
        return
    found = from_pretrained(tmp_path)
    same_outputs(found)
    assert "image_projection/kernel" in init_sources.parameters(str(tmp_path))
    for to in ("hf", "mmflax"):
        found.save(tmp_path / to, to=to)
        again = from_pretrained(tmp_path / to)
        same_outputs(again)
        assert again.processor.pixels == found.processor.pixels


def test_texts_of_custom_models_lie_under_text(weights, tmp_path):
    outside = ("visual.", "logit_scale")
    moved = {k if k.startswith(outside) else f"text.{k}": x for k, x in weights.items()}
    folder(tmp_path, moved, changed(custom_text=True))
    assert inspect(tmp_path).fields == inspect(cases.GOLDEN / RECORDED).fields


def test_transformers_config_goes_before_open_clips(weights, tmp_path):
    folder(tmp_path, {"none": np.ones(1)}, changed(quick_gelu=False))
    (tmp_path / "config.json").write_text((cases.GOLDEN / RECORDED / "config.json").read_text())
    save_file(weights, tmp_path / "model.safetensors")
    assert inspect(tmp_path).fields["image_encoder"]["activation"] == "quick_gelu"


def config_of(path, model, **kwargs):
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    return open_clip.clip_config(path, **kwargs)


# what model_cfg says: (part, keys), and where its value shows in the config
READ = {
    "gelu": (changed(quick_gelu="absent"), "vision", "hidden_act", "gelu"),
    "gelu of texts": (changed(quick_gelu=False), "text", "hidden_act", "gelu"),
    "quick_gelu": (MODEL, "text", "hidden_act", "quick_gelu"),
    "heads": (changed("vision_cfg", head_width=8), "vision", "num_attention_heads", 2),
    "heads of texts": (changed("text_cfg", heads=5), "text", "num_attention_heads", 5),
    "mlp": (changed("vision_cfg", mlp_ratio=4.3637), "vision", "intermediate_size", 69),
    "whole mlp": (changed("text_cfg", mlp_ratio=2), "text", "intermediate_size", 40),
    "image": (changed("vision_cfg", image_size=[16, 24]), "vision", "image_size", [16, 24]),
    "patch": (changed("vision_cfg", patch_size=[8, 8]), "vision", "patch_size", [8, 8]),
    "words": (changed("text_cfg", vocab_size=7), "text", "vocab_size", 7),
    "length": (changed("text_cfg", context_length=5), "text", "max_position_embeddings", 5),
    "training": (changed("vision_cfg", patch_dropout=0.5), "vision", "hidden_size", 16),
    "said anyway": (changed("text_cfg", pool_type="argmax"), "text", "vocab_size", 29),
    "default": (changed(vision_cfg={"patch_size": 32}), "vision", "num_attention_heads", 12),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_every_key_means_what_open_clip_means(name, tmp_path):
    model, side, key, value = READ[name]
    assert config_of(tmp_path, model)[f"{side}_config"][key] == value


REFUSED = {
    "CoCa": (changed(multimodal_cfg={"width": 512}), "describes a CoCa"),
    "SigLIP": (changed(init_logit_bias=-10), "a SigLIP of open_clip"),
    "timm": (changed("vision_cfg", timm_model_name="convnext_base"), "image encoder is timm's"),
    "Hugging Face": (changed("text_cfg", hf_model_name="roberta-base"), "is Hugging Face's"),
    "ResNet": (changed("vision_cfg", layers=[3, 4, 6, 3]), "the image encoder is a ResNet"),
    "pooler": (changed("vision_cfg", attentional_pool=True), "attentional_pool is true"),
    "average": (changed("vision_cfg", pool_type="avg"), 'pool_type is "avg"'),
    "positions": (changed("vision_cfg", pos_embed_type="sin_cos_2d"), 'pos_embed_type is "sin'),
    "no first norm": (changed("vision_cfg", no_ln_pre=True), "no_ln_pre is true"),
    "layer scale": (changed("vision_cfg", ls_init_value=1e-4), "ls_init_value is 0.0001"),
    "norm": (changed("text_cfg", norm_kwargs={"eps": 1e-6}), "norm_kwargs is"),
    "tokens": (changed("text_cfg", output_tokens=True), "output_tokens is true"),
    "mask": (changed("text_cfg", no_causal_mask=True), "no_causal_mask is true"),
    "class token": (changed("text_cfg", embed_cls=True), "embed_cls is true"),
    "last token": (changed("text_cfg", pool_type="last"), 'pool_type is "last"'),
    "bias": (changed("text_cfg", proj_bias=True), "proj_bias is true"),
    "canonical texts": (changed("text_cfg", tokenizer_kwargs={"clean": "x"}), "tokenizer_kwargs"),
    "heads": (changed("vision_cfg", head_width=5), "head_width 5 does not divide"),
    "a word": (changed("text_cfg", layers="two"), 'layers is "two"; expected a whole number'),
    "new": (changed("vision_cfg", rotary=True), "vision_cfg.rotary is true, a key that"),
    "new above": (changed(towers=3), "towers is 3, a key that"),
    "half": (changed(text_cfg="absent"), "has no object text_cfg"),
    "size": (changed(embed_dim="absent"), "has no embed_dim"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_models_of_open_clip_are_refused(name, tmp_path):
    model, message = REFUSED[name]
    with pytest.raises(MmflaxError, match=message) as raised:
        config_of(tmp_path, model)
    assert "open_clip_config.json" in str(raised.value)


def test_a_key_may_be_ignored(tmp_path, weights):
    folder(tmp_path, weights, changed("vision_cfg", rotary=True))
    found = inspect(tmp_path, may_ignore_keys=["vision_cfg.rotary"])
    assert found.fields["image_encoder"]["width"] == 16
    assert found.processor().pixels.largest() == (16, 16)


@pytest.mark.parametrize("text", ["[]", "{", '{"preprocess_cfg": {}}', '{"model_cfg": 3}'])
def test_what_is_no_config_of_open_clip_is_refused(text, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(text)
    with pytest.raises(MmflaxError, match=r"open_clip_config\.json (is not JSON|has no object)"):
        open_clip.read(tmp_path)


def pixels_of(path, **images):
    model = changed("vision_cfg", image_size=224)
    config = {"model_cfg": model, "preprocess_cfg": images}
    (path / "open_clip_config.json").write_text(json.dumps(config))
    return PublishedProcessor.load(path)


def test_images_are_prepared_as_open_clip_does(tmp_path):
    found = pixels_of(tmp_path).pixels
    assert found.mean == OPENAI_MEAN
    assert found.std == (0.26862954, 0.26130258, 0.27577711)
    assert (found.filter, found.crops, found.resize.how) == ("bicubic", ((224, 224),), "crop")
    found = pixels_of(tmp_path, mean=[0.5] * 3, std=[0.25] * 3, interpolation="bilinear").pixels
    assert (found.mean, found.std, found.filter) == ((0.5,) * 3, (0.25,) * 3, "bilinear")
    squash = pixels_of(tmp_path, size=300, resize_mode="squash").pixels
    assert (squash.resize.how, squash.crops, squash.largest()) == ("squash", (), (224, 224))


def test_a_crop_rounds_as_torchvision_does(tmp_path):
    processor = pixels_of(tmp_path, mean=[0.0] * 3, std=[1.0] * 3)
    columns = np.arange(227, dtype=np.uint8)  # 3 more than the crop: from the second column on
    image = Image.fromarray(np.tile(columns[None, :, None], (224, 1, 3)))
    found = processor.images([image])["image"][0, 0, :, 0]
    np.testing.assert_allclose(found * 255, columns[2:226], atol=1e-3)
    assert processor.image_fields()["floor_crop"] is False


@pytest.mark.parametrize(
    "images, message",
    [
        (dict(resize_mode="longest"), "resize_mode is 'longest'; expected shortest or squash"),
        (dict(interpolation="random"), "interpolation is 'random'; expected bicubic or bilinear"),
        (dict(mode="L"), "mode is 'L'; expected RGB"),
        (dict(crop_pct=0.9), "has 'crop_pct', which may change the pixels"),
        (dict(mean=[0.5]), "image_mean"),
    ],
)
def test_other_preprocessing_is_refused(images, message, tmp_path):
    with pytest.raises(MmflaxError, match=message):
        pixels_of(tmp_path, **images)


def test_a_folder_without_a_tokenizer_says_so_when_asked_for_texts(tmp_path):
    processor = pixels_of(tmp_path)
    with pytest.raises(MmflaxError, match=r"no tokenizer .*have to be copied beside its weights"):
        processor.texts(["a cat"])


def tokenizer(path):
    words = [*"abc", *(f"{letter}</w>" for letter in "abc"), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n")


def test_a_tokenizer_beside_openais_file_has_the_models_length(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("mmflax.pretrained.families.configs.heads_of", lambda width, _: 4)
    torch_files.save({**weights, **numbers()}, tmp_path / "ViT-B-32.pt")
    tokenizer(tmp_path)
    processor = inspect(tmp_path / "ViT-B-32.pt").processor()
    batch = processor.batch([np.zeros((20, 30, 3), np.uint8)], ["ab"])
    assert (batch["image"].shape, batch["tokens"].shape) == ((1, 16, 16, 3), (1, 9))


def test_a_tokenizer_beside_it_has_the_models_length(tmp_path):
    tokenizer(tmp_path)
    batch = pixels_of(tmp_path).texts(["ab"])
    assert batch["tokens"].shape == (1, MODEL["text_cfg"]["context_length"])
    assert batch["tokens"][0, :4].tolist() == [6, 0, 4, 7]


def test_weights_of_open_clip_are_taken_from_the_hub(tmp_path, monkeypatch):
    def download(name, patterns, revision, offline):
        if "open_clip_pytorch_model.bin" in patterns:
            (tmp_path / "open_clip_pytorch_model.bin").touch()
        return tmp_path

    monkeypatch.setattr(hub, "_download", download)
    assert hub.locate("someone/open") == tmp_path
    assert (tmp_path / "open_clip_pytorch_model.bin").exists()
