"""Weights of equal shapes that mean something else are refused, field by field."""

import dataclasses
import importlib
import pkgutil
import re

import flax.linen as nn
import numpy as np
import pytest

from mmflax import registry
from mmflax.config.overrides import override
from mmflax.config.reading import load_config
from mmflax.config.schema import at
from mmflax.data.dataset import Dataset
from mmflax.data.processor import Processor
from mmflax.data.text.tokenizer import SPECIALS, Tokenizer
from mmflax.errors import MmflaxError
from mmflax.models import decoder, encoders, fusion, heads
from mmflax.models.layers.config import LayerConfig, StackConfig
from mmflax.pretrained.inspect import LazyArray
from mmflax.run import convert, init_inputs, init_meaning, init_sources
from mmflax.run.former import preprocessing_of
from mmflax.run.init_sources import Model, Opened, Source

SIZES = dict(width=8, depth=1, num_heads=2, mlp_dim=8)
IMAGES = dict(**SIZES, image_size=8, patch_size=4)
TEXTS = dict(**SIZES, vocab_size=20)
BUILT = {
    "encoders.vit": IMAGES, "encoders.clip_vision": IMAGES, "encoders.bert": TEXTS,
    "encoders.clip_text": TEXTS, "encoders.siglip_text": TEXTS,
    "encoders.patches": dict(width=8, image_size=8, patch_size=4),
    "encoders.swin": dict(image_size=8, width=8, depths=(1, 1), num_heads=(2, 2)),
    "encoders.resnet": dict(image_size=32, variant="18"),
    "encoders.efficientnet": dict(variant="B0", image_size=32),
    "encoders.vgg": dict(variant="11", image_size=32),
    "encoders.regions": dict(width=8, depth=1, num_heads=2),
}  # fmt: skip


def built(name, **changes):
    package, _, kind = name.partition(".")
    module = importlib.import_module(f"mmflax.models.{name}")
    fields = BUILT.get(name, SIZES if package == "fusion" else {})
    known = registry.keywords(module.build)
    return module.build(**{k: v for k, v in fields.items() if k in known} | changes)


KINDS = [f"encoders.{kind}" for kind in registry.names(encoders.__name__, "build")]
KINDS += [f"fusion.{kind}" for kind in registry.names(fusion.__name__, "build")]


def other(value):
    """Another value of a field, of whatever type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}_"
    return (*value, 9) if isinstance(value, tuple) else 7


def changed(owner, name, value):
    """A copy with another value of one field, which nothing checks."""
    copy = owner.clone() if isinstance(owner, nn.Module) else dataclasses.replace(owner)
    object.__setattr__(copy, name, value)
    return copy


def mutations(owner):
    """(class, field, a copy in which that field alone has another value), configs' fields too."""
    for field in dataclasses.fields(owner):
        value = getattr(owner, field.name)
        if isinstance(value, LayerConfig | StackConfig):
            for cls, name, inner in mutations(value):
                yield cls, name, changed(owner, field.name, inner)
        elif field.name not in ("parent", "name"):
            yield type(owner), field.name, changed(owner, field.name, other(value))


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_compared_or_has_a_reason_not_to_be(kind):
    module = built(kind)
    for cls, name, mutant in mutations(module):
        found = init_meaning.module_differences("fusion", mutant, module)
        expected = [name] if init_meaning.counts(cls, name) else []
        assert [one.field for one in found] == expected, name
    assert init_meaning.module_differences("fusion", module, module.clone()) == []


def test_no_reason_is_idle():
    """Every name in the tables is a field of some module or config."""
    modules = [heads, importlib.import_module("mmflax.models.layers.config")]
    for package in (encoders, fusion, decoder):
        modules += [
            importlib.import_module(f"{package.__name__}.{info.name}")
            for info in pkgutil.iter_modules(package.__path__)
        ]
    retrieval = importlib.import_module("mmflax.tasks.retrieval_model").RetrievalModel
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type)} | {retrieval}
    fields = {f.name for c in classes if dataclasses.is_dataclass(c) for f in dataclasses.fields(c)}
    for name, reason in (init_meaning.HARMLESS | init_meaning.SHAPES).items():
        assert name.split(".")[-1] in fields and len(reason) > 5, name
    assert set(init_meaning.NONE) <= fields


# kind, its field, another value, and that None or a default means the same as a value
OTHERS = [
    ("encoders.vit", "activation", "quick_gelu"),
    ("encoders.vit", "epsilon", 1e-12),
    ("encoders.vit", "pre_norm", True),
    ("encoders.vit", "position", "sincos2d"),
    ("encoders.bert", "position_offset", 2),
    ("encoders.bert", "norm_embeddings", False),
    ("encoders.bert", "num_heads", 4),
    ("encoders.clip_text", "end_token", 7),
    ("encoders.clip_text", "pooling", "last"),
    ("encoders.clip_text", "always_causal", False),
    ("encoders.swin", "window_size", 4),
    ("encoders.swin", "num_heads", (4, 2)),
    ("encoders.resnet", "stride_first", True),
    ("fusion.merged_attention", "norm_style", "pre"),
    ("fusion.co_attention", "image_pool", "gap"),
    ("fusion.cross_attention", "text_pool", "gap"),
    ("fusion.co_transformer", "pool", "sum"),
    ("fusion.bridge", "bridge_epsilon", 1e-5),
]
SAME = [
    ("encoders.vit", "dropout_rate", 0.5),
    ("encoders.vit", "image_size", 16),
    ("encoders.bert", "max_length", 40),
    ("encoders.bert", "qk_init", "shared"),
    ("encoders.bert", "remat", "full"),
    ("encoders.clip_text", "end_token", 19),
    ("fusion.co_transformer", "image_heads", 2),
    ("fusion.bridge", "bridge_epsilon", 1e-12),
    ("fusion.bridge", "dtype", "bfloat16"),
]


@pytest.mark.parametrize(("kind", "field", "value"), OTHERS)
def test_a_field_that_changes_the_function_is_refused(kind, field, value):
    part = {"encoders": "text_encoder", "fusion": "fusion"}[kind.split(".")[0]]
    theirs, ours = built(kind, **{field: value}), built(kind)
    found = init_meaning.module_differences(part, theirs, ours)
    assert [(one.field, one.theirs) for one in found] == [(field, value)]
    text = str(value).replace(" ", "")
    with pytest.raises(MmflaxError) as caught:
        init_meaning.refuse({"SOURCE": found}, ())
    message = str(caught.value)
    assert f"{part}.{field} is {value!r} in SOURCE and" in message
    assert f"(write --config.model.{part}.{field}={text})" in message
    assert message.endswith(f"--config.init.accept_changes={field}")
    for accepted in (field, f"{part}.{field}"):
        assert len(init_meaning.refuse({"SOURCE": found}, (accepted,))) == 1
    with pytest.raises(MmflaxError):
        init_meaning.refuse({"SOURCE": found}, (f"other.{field}",))


@pytest.mark.parametrize(("kind", "field", "value"), SAME)
def test_a_field_that_does_not_is_none_of_its_business(kind, field, value):
    theirs, ours = built(kind, **{field: value}), built(kind)
    assert init_meaning.module_differences("fusion", theirs, ours) == []


def test_another_kind_is_refused_by_name():
    found = init_meaning.module_differences(
        "text_encoder", built("encoders.clip_text"), built("encoders.bert")
    )
    assert found[0].describe("X") == (
        "text_encoder.name is 'clip_text' in X and 'bert' here "
        "(write --config.model.text_encoder.name=clip_text)"
    )


@pytest.mark.parametrize("names", [("activation",), ("activation", "epsilon")])
def test_the_advice_is_taken_as_printed(names):
    config = load_config("configs/clip.py:coco")
    changes = [
        init_meaning.Difference("image_encoder", name, 1, 2, f"model.image_encoder.{name}=1e-3")
        for name in names
    ]
    with pytest.raises(MmflaxError) as caught:
        init_meaning.refuse({"X": changes}, ())
    words = re.findall(r"(--config\.\S+?)(?:\)|$)", str(caught.value))
    assert len(words) == len(names) + 1
    changed = override(config, [words[-1]])
    assert at(changed, "init")["accept_changes"] == names


def tokenizer(words, **fields):
    return Tokenizer.from_vocabulary([*SPECIALS, *words], **fields)


def model(words=("a", "b"), answers=(), **fields):
    processor = Processor(
        image_size=8, max_length=8, tokenizer=tokenizer(words), answers=answers, **fields
    )
    return Model({}, None, processor, answers)


def test_another_vocabulary_of_the_same_size_is_found():
    theirs, ours = model(("a", "b", "c")), model(("a", "c", "b"))
    (found,) = init_inputs.word_differences(theirs, ours, "SRC")
    assert found.describe("SRC") == (
        "processor.tokenizer is \"with id 6 for 'b'\" in SRC and \"with id 7 for 'b'\" here "
        "(write --config.processor.from=SRC)"
    )
    assert list(init_inputs.word_differences(theirs, model(("a", "b", "c")), "SRC")) == []
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    words = [*letters, *(f"##{x}" for x in letters)]
    found = init_inputs.different_tokens(tokenizer(words), tokenizer(words, lowercase=False))
    assert found is not None and "for 'A photo of a Cat.'" in found[0]


def test_pixels_and_answers_are_compared():
    theirs, ours = (
        model(mean=(0.48, 0.45, 0.4), answers=("yes", "no")),
        model(answers=("no", "yes")),
    )
    (found,) = init_inputs.pixel_differences(theirs, ours, "SRC")
    assert found.write == "processor.mean=(0.48,0.45,0.4)"
    assert override(load_config("configs/clip.py:coco"), [f"--config.{found.write}"])["processor"][
        "mean"
    ] == (0.48, 0.45, 0.4)
    (found,) = init_inputs.answer_differences(theirs, ours)
    assert found.theirs == "a list with 'yes' at place 0"
    assert not list(init_inputs.pixel_differences(theirs, theirs, "SRC"))
    assert not list(init_inputs.answer_differences(theirs, theirs))
    (note,) = init_inputs.pixel_notes(model(filter="bilinear"), ours, "SRC")
    assert note == "images are resized with bicubic here, with bilinear in SRC"


def test_a_run_that_computes_otherwise_does_not_go_back(monkeypatch):
    """The original's config.json would say another activation than the run has."""
    weights = {"text_encoder/word_embedding/embedding": LazyArray((20, 8), lambda: None)}

    def goes_back(mean=(0.5, 0.5, 0.5), **changes):
        one = {"run": model(mean=mean), "origin": model()}
        parts = {"run": built("encoders.bert"), "origin": built("encoders.bert", **changes)}
        monkeypatch.setattr(
            init_sources,
            "opened",
            lambda source: Opened(
                weights | {"image_encoder/cls": weights["text_encoder/word_embedding/embedding"]},
                one[source.path]._replace(modules={"text_encoder": parts[source.path]}),
            ),
        )
        return convert._check_meaning(Source("origin"), "run")

    assert goes_back() == [] and goes_back(dropout_rate=0.3) == []
    with pytest.raises(MmflaxError, match="text_encoder.activation was 'relu' and is 'gelu' in"):
        goes_back(activation="relu")
    (note,) = goes_back(mean=(0.1, 0.5, 0.5))
    assert note.startswith("processor.mean was (0.5, 0.5, 0.5) and is (0.1, 0.5, 0.5) in the run;")


def test_the_advice_to_read_as_a_former_run_is_taken(tmp_path):
    """`processor.from` of a workdir gives its words and its pixels, and nothing else of it."""
    processor = model(("a", "b"), answers=("yes",), mean=(0.1, 0.2, 0.3)).processor
    processor.save(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    former = preprocessing_of(str(tmp_path))
    assert former.tokenizer == processor.tokenizer
    rows = [{"image": np.zeros((8, 8, 3), np.uint8), "question": "a b c", "answer": "no"}]
    data = Dataset("made up", {"train": rows})
    learned = Processor.learn(data, published=[former], max_length=4)
    assert learned.tokenizer == processor.tokenizer and learned.mean == (0.1, 0.2, 0.3)
    assert (learned.image_size, learned.max_length, learned.answers) == (8, 4, ("no",))
