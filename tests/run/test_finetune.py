"""Fine-tuning from a checkpoint alone: what is resolved, for every family and task."""

import dataclasses

import jax
import numpy as np
import pytest

from mmflax.config.reading import load_config
from mmflax.data.dataset import Dataset
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from mmflax.run import init_meaning
from mmflax.run.assemble import assemble
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.run.finetune import resolve, sources
from mmflax.run.train import start_of
from tests.config.test_config_tasks import arguments
from tests.config.test_config_tasks import dataset as made
from tests.run.small_sources import small
from tests.run.test_recipes import VOCABULARY, published

TASKS = arguments("finetune", "TASKS")
REGIONS = ("lxmert", "uniter", "vilbert", "visual_bert")
WHOLE = ("meter", "vilt", "bridgetower", *REGIONS)
PAIRS = ("clip", "siglip", "align")
APART = ("vit+bert", "deit+roberta", "swin+roberta", "resnet+bert", "vgg+bert", "clip+bert")
PAIRED = ("blip", "retrieval")  # its text encoder reads no image there
ALL = (*WHOLE, *PAIRS, "blip", *APART, "vit")


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


def named(families, root):
    return ",".join(small(family, root) for family in families.split("+"))


def config(families, task, root, *words):
    source = f"--config.init.from={named(families, root)}"
    return load_config(f"configs/finetune.py:{task}:DIR", [source, *words])


def data(task, regions):
    """Made-up examples of the task, with regions in place of pictures for families of these."""
    found = made(task)
    if not regions:
        return found
    seen = {"regions": np.zeros((3, regions), np.float32), "boxes": np.zeros((3, 4), np.float32)}
    if task == "reasoning":
        seen |= {f"second_{key}": value for key, value in seen.items()}
    rows = [
        {k: v for k, v in raw.items() if not k.endswith("image")} | seen
        for raw in found.splits["train"]
    ]
    return Dataset("made", {"train": rows, "validation": rows})


def started(families, task, root, *words):
    """(config, run, start) of a fine-tuning up to its first step; no weight is read."""
    resolved = resolve.resolved(config(families, task, root, *words))
    experiment = Experiment(resolved)
    check(experiment)
    encoder = sources.find({"init": resolved["init"]})["image_encoder"].modules["image_encoder"]
    processor = experiment.learn_processor(data(task, getattr(encoder, "feature_dim", 0)))
    parts = assemble(experiment.of_length(20), processor, experiment.mesh(jax.devices()[:1]))
    return resolved, parts, start_of(experiment, parts)


def new_parts(start):
    names = (path.removeprefix("backbone/") for path, how in start.how.items() if how == "new")
    return {name.split("/")[0] for name in names}


def expect_new(families, task):
    """The modules that no source can have."""
    pair = families in PAIRS
    found = {"head"} if task not in ("captioning", "translation", "retrieval") else set()
    if task in ("captioning", "translation"):
        found |= {"decoder", "memory"}
    if task == "retrieval":
        found |= {"image_projection", "text_projection", "temperature", "match_head"}
        if pair:
            return {"temperature"} if families == "align" else set()
        if families == "blip":
            return {"image_projection", "text_projection"}
    return (
        found
        | (set() if families in (*WHOLE, "blip") else {"fusion"})
        | ({"text_encoder"} if families == "vit" else set())
    )


# Two kinds of source on every day, all of them with the slow tests.
EVERYDAY = [("vilt", "reasoning"), ("clip", "retrieval")]
CASES = [
    pytest.param(f, t, marks=() if (f, t) in EVERYDAY else pytest.mark.slow)
    for f in ALL
    for t in TASKS
]


@pytest.mark.parametrize(("families", "task"), CASES)
def test_every_weight_finds_its_place(families, task, root):
    """The config is whole, the parameters are built, and what no source has is all that is new."""
    resolved, _, start = started(families, task, root)
    assert not resolve.asks(resolved) and not any("accept" in note for note in start.notes)
    assert new_parts(start) == expect_new(families, task)
    changed = {how for how in start.how.values() if how not in ("new", "loaded")}
    typed = task == "reasoning" and families in ("meter", "vilt", "bridgetower")
    assert changed == ({"1 rows added, copies of the last"} if typed else set())
    parts = [part for part in resolve.PARTS if part not in new_parts(start)]
    left = {name.split("/")[0] for name in start.unused if "/pooler/" not in name}
    assert not left & set(parts) or families == "clip+bert" or (families, task) == PAIRED


def value(module, name):
    """Of a field, where several values mean the same as one of them; dropout is config.json's."""
    found = init_meaning.meaning(module, name)
    if name == "layer":
        wide = found.mlp_dim or 4 * module.width
        rates = dict(dropout_rate=0.0, attention_dropout_rate=0.0)
        return dataclasses.replace(found, mlp_dim=wide, **rates)
    return None if name == "dropout_rate" else found


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("meter", "bridgetower") else ())
        for name in ("meter", "vilt", "bridgetower", "clip", "siglip")
    ],
)
def test_the_hand_written_configs_are_what_is_resolved(name, monkeypatch):
    """Of the published checkpoints' own config.json, every field of every part."""
    found = sources.Found(sources.Source("there"), name, published(name))
    monkeypatch.setattr(sources, "open_source", lambda _: found)
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda _: VOCABULARY[name]))
    by_hand = load_config(f"configs/{name}.py")
    task = "retrieval" if name in PAIRS else "vqa"
    words = ["--config.init.from=there", "--config.processor.from=words"]
    asked = load_config(f"configs/finetune.py:{task}:DIR", words)
    resolved = resolve.resolved(asked, accelerated=True)
    resolved["processor"].pop("from")
    for one in (by_hand, resolved):
        one["processor"] |= {"image_size": by_hand["processor"]["image_size"], "max_length": 40}
    ours, theirs = (
        Experiment(one).model(Experiment(one).learn_processor(made(task)))
        for one in (resolved, by_hand)
    )
    for part in resolve.PARTS if task == "vqa" else resolve.PARTS[:2]:
        a, b = getattr(ours, part), getattr(theirs, part)
        assert type(a) is type(b)
        for field in dataclasses.fields(b):
            if field.name not in ("parent", "name"):
                assert value(a, field.name) == value(b, field.name), (part, field.name)
    heads = ("head", "embed_dim", "loss", "temperature_init", "bias_init", "max_scale",
             "image_projection", "text_projection")  # fmt: skip
    for key in heads if task == "retrieval" else ("head",):
        a, b = (one["task"].get(key) for one in (resolved, by_hand))
        if b is not None:
            assert a == b, key
    if name in ("meter", "vilt", "bridgetower"):
        rates = resolved["optim"], by_hand["optim"]
        assert rates[0]["lr_multipliers"] == rates[1]["lr_multipliers"]
        assert rates[0]["schedule"]["peak"] == rates[1]["schedule"]["peak"]


def test_what_the_config_says_goes_first(root):
    words = [
        "--config.model.image_encoder.dropout_rate=0.3", "--config.model.fusion.depth=1",
        "--config.task.head.hidden_dim=7", "--config.processor.max_length=9",
        "--config.optim.weight_decay=0.5", "--config.optim.schedule.peak=0.001",
        "--config.optim.freeze=image_encoder/", "--config.model.image_encoder.dtype=float32",
    ]  # fmt: skip
    found = resolve.resolved(config("meter", "vqa", root, *words), accelerated=True)
    assert found["model"]["image_encoder"]["dropout_rate"] == 0.3
    assert found["model"]["image_encoder"]["dtype"] == "float32"
    assert found["model"]["text_encoder"]["dtype"] == "bfloat16"
    assert found["model"]["fusion"]["depth"] == 1 and found["task"]["head"] == {"hidden_dim": 7}
    assert found["processor"]["max_length"] == 9 and found["optim"]["weight_decay"] == 0.5
    assert found["optim"]["schedule"]["peak"] == 0.001


@pytest.mark.slow
def test_another_fusion_than_the_checkpoints_is_new(root):
    word = "--config.model.fusion.name=concat"
    sizes = [f"--config.model.fusion.{k}=16" for k in ("width",)]
    more = ["--config.model.fusion.depth=1", "--config.model.fusion.num_heads=2"]
    resolved, _, start = started("lxmert", "vqa", root, word, *sizes, *more)
    assert resolved["model"]["fusion"]["name"] == "concat"
    assert new_parts(start) == {"fusion", "head"}
    assert dict(resolved["optim"]["layer_decay"])["(^|/)text_encoder/"] == 0.8


@pytest.mark.slow
def test_larger_images_on_request_alone(root):
    small_side = resolve.resolved(config("vit+bert", "vqa", root))["processor"]["image_size"]
    assert small_side == 12
    said = []
    asked = config("vit+bert", "vqa", root, "--config.processor.image_size=24")
    assert resolve.resolved(asked, say=said.append)["processor"]["image_size"] == 24
    assert any("24 pixels a side, 12 in" in line for line in said)
    _, _, start = started("vit+bert", "vqa", root, "--config.processor.image_size=24")
    assert "resized from 3x3 to 6x6" in start.how.values()
    with pytest.raises(MmflaxError, match="patches of 4 pixels; give --config.*image_size=20"):
        resolve.resolved(config("vit+bert", "vqa", root, "--config.processor.image_size=21"))


def test_a_summary_says_what_was_decided(root):
    said = []
    resolve.resolved(config("clip", "vqa", root), say=said.append)
    text = "\n".join(said)
    for part in ("image_encoder: clip_vision 2x16 (clip, ", "fusion: co_attention 1x20 (new)",
                 "new: head", "images of 16 pixels", "at most 9 tokens", "batch 32, 10 epochs",
                 "x10 in (^|/)head/", "x0.8 for each layer"):  # fmt: skip
        assert part in text, text


def test_what_was_decided_stays_without_the_checkpoint(root):
    asked = config("vit+bert", "vqa", root)
    former = resolve.resolved(asked)
    again = load_config("configs/finetune.py:vqa:DIR")
    assert resolve.resolved(again, former) == former
    assert resolve.resolved(asked, former)["init"] == former["init"]
    changed = load_config("configs/finetune.py:vqa:DIR", ["--config.model.fusion.depth=3"])
    assert resolve.resolved(changed, former)["model"]["fusion"]["depth"] == 3
    plain = load_config("configs/folder.py:vqa:DIR")
    assert resolve.resolved(plain) == plain


MISFITS = {
    "no source": ("", "vqa", "init.from names none; give a hub id"),
    "words alone": ("bert", "vqa", "reads texts and no images; name an image encoder's checkpoint"),
    "two of one kind": ("vit+deit", "vqa", "nothing is left to take from"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_one_sentence(name, root):
    families, task, words = MISFITS[name]
    asked = load_config(f"configs/finetune.py:{task}:DIR")
    if families:
        asked = config(families, task, root)
    with pytest.raises(MmflaxError, match=words):
        resolve.resolved(asked)


def test_a_checkpoint_without_its_tokenizer_names_one(root, tmp_path):
    source = small("meter", tmp_path, words=False)
    asked = load_config("configs/finetune.py:vqa:DIR", [f"--config.init.from={source}"])
    with pytest.raises(MmflaxError, match=r"--config.processor.from=roberta-base\.") as error:
        resolve.resolved(asked)
    assert "tokenizer's files of roberta-base" in str(error.value)


def test_texts_that_cannot_be_written_are_refused(root, monkeypatch):
    """SigLIP's own tokenizer has nothing that begins a text."""

    def without_begin(source):
        found = open_source(source)
        found.opened.model.processor.tokenizer.cls_id = None
        return found

    open_source = sources.open_source
    monkeypatch.setattr(sources, "open_source", without_begin)
    with pytest.raises(MmflaxError, match=r"siglip. does not fit captioning: .*start from METER"):
        resolve.resolved(config("siglip", "captioning", root))


def test_regions_that_the_data_lack_are_said_before_training(root):
    resolved = resolve.resolved(config("uniter", "vqa", root))
    experiment = Experiment(resolved | {"processor": resolved["processor"] | {"image_size": 8}})
    processor = experiment.learn_processor(made("vqa"))
    with pytest.raises(MmflaxError, match="which the data lack; take data with .* such as METER"):
        experiment.model(processor)
