"""Another kind of fusion, encoder, task, data set, optimizer or schedule, chosen by its name."""

import pathlib

import jax
import pytest

from mmflax import cli, registry
from mmflax.config import reading
from mmflax.config.reading import load_config
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from mmflax.run.check import check
from mmflax.training import optim
from tests.hints import hints

SOURCES = [
    "shapes_vqa.py", "shapes.py:captioning", "shapes.py:retrieval", "shapes.py:pretraining",
    "folder.py:vqa:d", "public.py:vqa_v2", "lxmert.py:vqa", "meter.py:vqa", "bridgetower.py:vqa",
    "vilt.py:vqa", "clip.py:coco", "siglip.py:coco",
]  # fmt: skip
FUSIONS = registry.names("mmflax.models.fusion")
ENCODERS = {
    "image_encoder": ["vit", "clip_vision", "swin", "resnet", "vgg", "efficientnet"],
    "text_encoder": ["bert", "clip_text", "siglip_text"],
}
# (kinds, configs with which they cannot be: the message says why)
IMPOSSIBLE = [
    (["bridge"], ["shapes.py:pretraining", "vilt.py:vqa"]),
    # Only the last layers of the same width are read.
    (["swin", "resnet", "vgg", "efficientnet"], ["bridgetower.py:vqa"]),
]


def read(source, *words):
    notes = []
    words = [f"--config.{word}" for word in words]
    return load_config(f"configs/{source}", words, notes.append), notes


def builds(config):
    """Encoders, fusion and heads are made of the config's fields; nothing is computed."""
    for part in ("image_encoder", "text_encoder", "fusion"):
        if "depth" in config["model"][part]:
            config["model"][part]["depth"] = 1  # all layers are alike
    check(Experiment(config))


@pytest.mark.parametrize("source", ["shapes_vqa.py", "shapes.py:captioning", "lxmert.py:vqa"])
def test_every_kind_of_fusion_builds_from_a_shipped_config(source):
    for kind in FUSIONS:
        config, notes = read(source, f"model.fusion.name={kind}")
        assert config["model"]["fusion"]["name"] == kind
        builds(config)
        own = registry.keywords_of("mmflax.models.fusion", "model.fusion", kind)
        assert bool(notes) == (source != "shapes.py:captioning" and (
            "form" not in own
            or (kind in ("merged_attention", "cross_attention") and source == "lxmert.py:vqa")
        )), (kind, notes)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_every_part_builds_from_every_shipped_config(source):
    """As it is, or with what the messages say to add; the rest is one sentence that is listed."""
    kinds = [(f"model.{part}.name", name) for part, names in ENCODERS.items() for name in names]
    kinds += [("model.fusion.name", kind) for kind in FUSIONS]
    kinds += [("optim.name", name) for name in ("adamw", "lamb", "adafactor", "sgd")]
    kinds += [("optim.schedule.name", name) for name in optim._SCHEDULES]
    for path, kind in kinds:
        words = ["--config.processor.image_size=64", f"--config.{path}={kind}"]
        if any(kind in known and source in sources for known, sources in IMPOSSIBLE):
            with pytest.raises(MmflaxError):
                builds(load_config(f"configs/{source}", words, str))
            continue
        for _ in range(4):
            config = load_config(f"configs/{source}", words, str)
            try:
                builds(config)
                break
            except MmflaxError as error:
                assert hints(error) and len(words) < 5, f"{path}={kind}: {error}"
                words.append(hints(error)[0])
        jax.clear_caches()


@pytest.mark.parametrize(
    ("source", "words", "section", "left_out", "kept"),
    [
        ("shapes_vqa.py", ["model.fusion.name=concat"], "model.fusion", {"form"}, {"width"}),
        ("lxmert.py:vqa", ["model.fusion.name=merged_attention"], "model.fusion", {"form"}, {}),
        ("shapes_vqa.py", ["model.image_encoder.name=resnet"], "model.image_encoder",
         {"cls_token", "depth", "mlp_dim", "num_heads", "patch_size", "position", "qk_init",
          "position_scale", "stem", "stem_norm", "width"}, {"activation"}),
        ("shapes_vqa.py", ["model.image_encoder.name=swin"], "model.image_encoder",
         {"cls_token", "depth", "mlp_dim", "num_heads", "position", "qk_init", "position_scale",
          "stem", "stem_norm"}, {"width"}),
        ("public.py:vqa_v2", ["model.image_encoder.name=swin"], "model.image_encoder",
         {"variant", "scan_layers"}, {"dtype", "remat"}),
        ("public.py:vqa_v2", ["model.image_encoder.name=clip_vision"], "model.image_encoder",
         set(), {"variant"}),
        ("public.py:vqa_v2", ["model.text_encoder.name=clip_text"], "model.text_encoder",
         {"variant"}, {"dropout_rate"}),
        ("shapes_vqa.py", ["model.text_encoder.variant=tiny"], "model.text_encoder",
         {"width", "depth", "num_heads", "mlp_dim"}, {"qk_init"}),
        ("shapes_vqa.py", ["task.name=retrieval"], "task", {"head"}, {}),
        ("shapes.py:captioning", ["task.name=vqa"], "task", {"decoder", "memory", "table"},
         {"caption_words"}),
        ("public.py:coco_captions", ["task.decode.method=greedy"], "task.decode",
         {"beams", "length_penalty"}, {}),
        ("shapes_vqa.py", ["data.name=vqa_v2"], "data", {"num_scenes", "image_size"},
         {"batch_size"}),
        ("shapes_vqa.py", ["optim.name=sgd"], "optim", {"b2"}, {"clip_norm", "schedule"}),
        ("shapes_vqa.py", ["optim.schedule.name=constant"], "optim.schedule", {"end"}, {"peak"}),
        ("shapes_vqa.py", ["optim.schedule.name=warmup_linear"], "optim.schedule", set(),
         {"end", "warmup_steps"}),
        ("shapes_vqa.py", ["model.fusion.name=co_attention"], "model.fusion", set(), {"form"}),
    ],
)  # fmt: skip
def test_a_kind_keeps_what_it_knows_and_the_rest_is_named(source, words, section, left_out, kept):
    def at(config):
        for key in section.split("."):
            config = config[key]
        return config

    before, (after, notes) = at(read(source)[0]), read(source, *words)
    assert before.keys() - at(after).keys() == left_out
    assert all(at(after)[key] == before[key] for key in kept)
    assert len(notes) == bool(left_out)
    for key in left_out:
        assert f"{section}.{key}" in notes[0]


def test_a_required_field_that_is_left_to_the_reader_is_said_with_its_key():
    config, _ = read("shapes_vqa.py", "model.image_encoder.name=swin")
    with pytest.raises(MmflaxError, match="--config.model.image_encoder.variant=B"):
        check(Experiment(config))
    builds(read("shapes_vqa.py", "model.image_encoder.name=swin",
                "model.image_encoder.variant=T")[0])  # fmt: skip
    config, _ = read("shapes_vqa.py", "data.name=folder")
    with pytest.raises(MmflaxError, match="--config.data.path=VALUE"):
        check(Experiment(config))
    config, _ = read("shapes_vqa.py", "model.fusion.name=bridge")
    with pytest.raises(MmflaxError, match="--config.model.fusion.depth=1 or --config.model.image"):
        check(Experiment(config))
    check(Experiment(read("shapes_vqa.py", "model.fusion.name=bridge", "model.fusion.depth=1")[0]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.fusion.name=concat", "model.fusion.form=meter"], "no key 'form'"),
        (["model.fusion.name=concat", "model.fusion.widht=8"], "did you mean 'width'"),
        (["model.fusion.name=concta"], "did you mean 'concat'"),
        (["optim.name=sgd", "optim.b2=0.9"], "no key 'b2'"),
        (["optim.momentum=0.9"], "optim has no key 'momentum'"),
        (["optim.name=adma"], "did you mean 'adamw'"),
        (["optim.schedule.name=constant", "optim.schedule.end=1"], "no key 'end'"),
        (["optim.schedule.name=cosine"], "did you mean 'warmup_cosine'"),
        (["task.name=mlm"], "'mlm', which does not exist"),
        (["task.name=vqaa"], "did you mean 'vqa'"),
        (["data.name=folders", "data.path=x"], "did you mean 'folder'"),
    ],
)
def test_what_the_chosen_kind_does_not_know_is_an_error(words, message):
    with pytest.raises(MmflaxError, match=message):
        check(Experiment(read("shapes_vqa.py", *words)[0]))


def test_a_field_that_neither_kind_knows_is_still_an_error(tmp_path):
    text = (pathlib.Path(reading.__file__).parents[2] / "configs" / "shapes_vqa.py").read_text()
    file = tmp_path / "mine.py"
    file.write_text(text.replace('form="meter", norm_style="pre"', 'from_="meter"'))
    config = load_config(str(file), ["--config.model.fusion.name=concat"])
    with pytest.raises(MmflaxError, match="model.fusion.from_ is not a known key"):
        check(Experiment(config))


def test_the_command_line_says_what_is_left_out(capsys):
    words = ["config", "--config", "configs/shapes_vqa.py", "--config.model.fusion.name=concat"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err == (
        "note: model.fusion.name=concat does not take model.fusion.form of the config, which is "
        "for 'co_attention': left out\n"
    )
    assert "model.fusion.form" not in out
