"""A run that starts from weights: what fits is loaded, the rest is named."""

import shutil

import jax
import numpy as np
import pytest

from mmflax import paths
from mmflax.config.overrides import override
from mmflax.errors import MmflaxError
from mmflax.models.encoders import vit
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.pretrained.inspect import LazyArray
from mmflax.run import init_from, init_sources
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.restore import restore
from mmflax.run.train import train
from tests import tiny
from tests.hints import hints
from tests.pretrained import cases


def shapes(**given):
    return {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in given.items()}


def lazy(*shape, fill=None):
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return LazyArray(shape, lambda: value)


def start(monkeypatch, source, ours, fields=None, **more):
    monkeypatch.setattr(init_sources, "opened", lambda _: init_sources.Opened(source))
    return init_from.start(fields or {"from": "somewhere"}, ours, **more)


def test_nothing_asked_for_is_none():
    assert init_from.start({}, {}) is None
    assert init_from.start({"from": None, "image_encoder": {"from": ""}}, {}) is None
    with pytest.raises(MmflaxError, match="did you mean 'image_encoder'"):
        init_from.start({"image_encodr": {"from": "x"}}, {})


def test_parts_heads_and_what_is_left(monkeypatch):
    source = {"image_encoder/w": lazy(2), "text_encoder/w": lazy(2), "head/fc1/kernel": lazy(2, 2)}
    ours = {
        f"{prefix}{path}": leaf
        for prefix, path, leaf in (
            ("backbone/", "image_encoder/w", np.zeros(2)),
            ("backbone/", "text_encoder/w", np.zeros(2)),
            ("", "head/fc1/kernel", np.zeros((9, 9))),
        )
    }
    found = start(monkeypatch, source, ours)
    assert found.how == {
        "backbone/image_encoder/w": "loaded",
        "backbone/text_encoder/w": "loaded",
        "head/fc1/kernel": "new",
    }
    assert found.unused == ("head/fc1/kernel",)
    part = start(monkeypatch, source, ours, {"image_encoder": {"from": "x"}})
    assert sorted(part.how.values()) == ["loaded", "new", "new"] and part.unused == ()
    with pytest.raises(
        MmflaxError, match=r"head/fc1/kernel is \[2, 2\] in somewhere, not \[9, 9\]"
    ):
        start(monkeypatch, source, ours, {"from": "somewhere", "skip": ()})
    with pytest.raises(MmflaxError, match="text_encoder/w is not in somewhere"):
        start(monkeypatch, {"image_encoder/w": lazy(2)}, ours)


def test_one_pattern_may_be_a_string_and_none_is_the_default():
    assert init_sources.skipped({"skip": "mlm"}) == ("mlm",)
    assert init_sources.skipped({"skip": ()}) == ()
    assert init_sources.skipped({}) == init_sources.skipped({"skip": None}) == init_sources.SKIP


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (("^haed/",), "init.skip has '.haed/', which matches no parameter .*--config.init.skip=.."),
        (("^head/", "x9"), "has 'x9', which matches no parameter"),
    ],
)
def test_a_pattern_of_skip_that_matches_nothing_is_an_error(skip, message, monkeypatch):
    source = {"image_encoder/w": lazy(2)}
    ours = shapes(**{"backbone/image_encoder/w": (2,), "head/w": (2,)})
    with pytest.raises(MmflaxError, match=message):
        start(monkeypatch, source, ours, {"from": "x", "skip": skip})
    assert (
        start(monkeypatch, source, ours, {"from": "x", "skip": ("^head/",)}).how["head/w"] == "new"
    )


def test_what_does_not_fit_is_left_at_random_by_the_words_of_the_message(monkeypatch):
    source = {"image_encoder/w": lazy(2)}
    ours = shapes(**{"backbone/image_encoder/w": (2,), "backbone/text_encoder/w": (3,)})
    with pytest.raises(MmflaxError) as error:
        start(monkeypatch, source, ours)
    (word,) = hints(error.value)
    config = override({"init": {"from": "x"}}, [word])
    with pytest.raises(MmflaxError, match="matches no parameter") as error:
        start(monkeypatch, source, ours, config["init"])
    (word,) = hints(error.value)
    config = override({"init": {"from": "x"}}, [word])
    found = start(monkeypatch, source, ours, config["init"])
    assert found.how["backbone/text_encoder/w"] == "new"


def test_tables_are_fitted(monkeypatch):
    source = {
        "image_encoder/position_embedding": lazy(1 + 4, 3),
        "text_encoder/position_embedding/embedding": lazy(512, 3),
        "fusion/type_embedding/embedding": lazy(2, 3),
    }
    ours = {
        "image_encoder/position_embedding": np.zeros((1 + 9, 3)),
        "text_encoder/position_embedding/embedding": np.zeros((40, 3)),
        "fusion/type_embedding/embedding": np.zeros((3, 3)),
    }
    encoder = vit.build(image_size=(6, 6), patch_size=2, width=3, depth=1, num_heads=1, mlp_dim=1)
    model = init_sources.Model({}, encoder, None, ())
    found = start(monkeypatch, source, ours, model=model)
    values = {path: value.read() for path, value in found.values.items()}
    assert {path: value.shape for path, value in values.items()} == {
        path: value.shape for path, value in ours.items()
    }
    image = values["image_encoder/position_embedding"]
    assert np.array_equal(image[0], [0, 1, 2]) and "from 2x2 to 3x3" in found.table()
    types = values["fusion/type_embedding/embedding"]
    assert np.array_equal(types[2], types[1]) and "1 rows added" in found.table()
    longer = ours | {"text_encoder/position_embedding/embedding": np.zeros((600, 3))}
    with pytest.raises(MmflaxError, match=r"is \[512, 3\] in somewhere, not \[600, 3\]"):
        start(monkeypatch, source, longer, model=model)


@pytest.mark.parametrize("scanned", [True, False])
def test_loops_and_scans_start_from_each_other(monkeypatch, scanned):
    loop = {f"e/layers_{i}/w": lazy(2) for i in range(3)}
    scan = {"e/layers/w": lazy(3, 2)}
    source, ours = (loop, scan) if scanned else (scan, loop)
    found = start(monkeypatch, source, {p: np.zeros(x.shape) for p, x in ours.items()})
    assert set(found.how.values()) == {"loaded"} and found.unused == ()
    for path, value in found.values.items():
        assert value.read().shape == ours[path].shape


def test_a_source_that_cannot_be_used_leaves_the_workdir_free(shapes_dir, tmp_path):
    for init, message in (
        ({"form": "x"}, "did you mean 'from'"),
        ({"from": str(cases.load_golden("bert/plain")[0])}, "do not fit the model"),
    ):
        with pytest.raises(MmflaxError, match=message):
            train(tiny.config(shapes_dir) | {"init": init}, str(tmp_path / "w"))
        assert not (tmp_path / "w" / "config.json").exists()


@pytest.mark.slow
def test_a_run_starts_from_another_run(trained, shapes_dir, tmp_path):
    workdir, _, result = trained
    config = tiny.config(shapes_dir)
    config["init"] = {"from": str(workdir)}
    config["optim"] = {**config["optim"], "schedule": {"name": "constant", "peak": 0.0}}
    config["train"] = {**config["train"], "steps": 1}
    again = train(config, str(tmp_path / "run"), quiet=True)
    before = paths.leaves(restore(workdir)[2])
    after = paths.leaves(again.state.params)
    for path, value in after.items():
        same = np.array_equal(value, before[path])
        assert same or path.startswith("head/"), path


@pytest.mark.slow
def test_a_run_starts_from_a_public_checkpoint_resumes_and_is_judged(shapes_dir, tmp_path, capsys):
    """BERT's text encoder with its own vocabulary, in a model whose other parts are new."""
    source = tmp_path / "bert"
    shutil.copytree(cases.GOLDEN / "bert-plain", source)
    letters = [f"{mark}{letter}" for letter in "abcdeilnorst" for mark in ("", "##")]
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (source / "vocab.txt").write_text("\n".join([*specials, *letters, "?"]))
    config = tiny.config(shapes_dir)
    config["model"]["text_encoder"] = dict(name="bert", width=16, depth=2, num_heads=4, mlp_dim=32)
    config["init"] = {"text_encoder": {"from": str(source)}}
    config["processor"] = {**config["processor"], "from": str(source), "max_length": 12}
    del config["processor"]["vocab_size"]
    schedule = {"name": "constant", "peak": 0.0}
    still = {**config, "optim": {**config["optim"], "schedule": schedule}}
    still["train"] = {**config["train"], "steps": 1}
    begun = train(still, str(tmp_path / "still"))
    shown = capsys.readouterr().out
    assert "text_encoder: " in shown and "37 loaded" in shown
    tree = dict(begun.state.params)
    text = paths.leaves(tree.get("backbone", tree)["text_encoder"])
    loaded = paths.leaves(from_pretrained(source).params["text_encoder"])
    for path, leaf in text.items():
        assert np.array_equal(leaf, loaded[path]), path

    run = str(tmp_path / "run")
    first = {**config, "train": {**config["train"], "steps": 3}}
    train(first, run, quiet=True)
    shutil.rmtree(source)  # a resumed run needs its start no more
    result = train(config, run, quiet=True)
    assert int(result.state.step) == config["train"]["steps"]
    found = evaluate(run)
    assert 0 <= found["metrics"]["full"]["accuracy"] <= 1
    assert load(run).predict(None, "is it red?").answer
