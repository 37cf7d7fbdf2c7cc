"""Whole runs: train, resume, evaluate, on a tiny config."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mmflax
from mmflax import paths
from mmflax.checkpoints.trees import to_key_data
from mmflax.data import pipeline
from mmflax.distributed import mesh as meshes
from mmflax.errors import MmflaxError
from mmflax.run.build import Experiment
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.restore import restore
from mmflax.run.train import train
from mmflax.run.workdir import read_config
from tests import tiny


def leaves(state):
    return {path: np.asarray(to_key_data(leaf)) for path, leaf in paths.leaves(state).items()}


def test_a_workdir_holds_all_that_later_commands_need(trained):
    workdir, config, result = trained
    names = {path.name for path in workdir.iterdir()}
    assert {
        "config.json", "run.json", "processor.json", "tokenizer.json", "checkpoints",
    } <= names  # fmt: skip
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3
    assert result.step == 6
    assert "validation/accuracy" in result.metrics
    assert "validation/text_only/accuracy" in result.metrics


def test_stopped_and_resumed_equals_never_stopped(trained, shapes_dir, tmp_path):
    _, _, whole = trained
    # The schedule needs the whole length: stop by asking for fewer steps of the same schedule.
    config = tiny.config(shapes_dir, steps=2)
    config["optim"]["schedule"]["total_steps"] = 6
    train(config, str(tmp_path / "w"), quiet=True)
    config["train"]["steps"] = 6
    resumed = train(config, str(tmp_path / "w"), quiet=True)
    expected, found = leaves(whole.state), leaves(resumed.state)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_a_finished_run_has_nothing_to_do(trained):
    workdir, config, whole = trained
    again = train(config, str(workdir), quiet=True)
    assert again.step == 6
    for name, value in leaves(whole.state).items():
        np.testing.assert_array_equal(leaves(again.state)[name], value, err_msg=name)


def test_another_config_is_refused_and_nothing_changes(trained):
    workdir, config, _ = trained
    before = (workdir / "config.json").read_text()
    other = json.loads(json.dumps(config))
    other["model"]["fusion"]["width"] = 48
    with pytest.raises(MmflaxError, match="model.fusion.width: 32 -> 48"):
        train(other, str(workdir), quiet=True)
    assert (workdir / "config.json").read_text() == before


def test_evaluate_equals_asking_one_by_one(trained):
    """The masked, batched, sharded evaluation against answers counted in Python."""
    workdir, _, _ = trained
    result = evaluate(str(workdir), "test")
    run = load(str(workdir), step=result["step"])
    dataset = Experiment(read_config(workdir)).dataset()
    source = dataset.source("test")
    raws = [source[i] for i in range(len(source))]
    answers = run.predict([r["image"] for r in raws], [r["question"] for r in raws])
    right = np.array([p.answer == r["answer"] for p, r in zip(answers, raws, strict=True)])
    kinds = np.array([r["question_type"] for r in raws])
    full = result["metrics"]["full"]
    assert result["examples"] == len(raws)
    assert full["accuracy"] == pytest.approx(right.mean(), abs=1e-12)
    for kind in set(kinds):
        assert full[f"accuracy/{kind}"] == pytest.approx(right[kinds == kind].mean(), abs=1e-12)
    majority = np.mean([r["answer"] == run.processor.answers[0] for r in raws])
    assert result["metrics"]["majority"]["accuracy"] == pytest.approx(majority, abs=1e-12)
    assert json.loads((workdir / "eval" / "test.json").read_text()) == result


def test_a_run_opens_by_the_door_of_public_checkpoints(trained):
    """The same model as a call, on one device, on a mesh, and in half precision."""
    workdir, config, _ = trained
    _, built, params, step = restore(workdir)
    found = mmflax.from_pretrained(workdir)
    assert found.config["run"] == step and found.config["original"]["seed"] == config["seed"]
    raws = [Experiment(config).dataset().source("test")[i] for i in range(8)]
    batch = {k: jnp.asarray(v) for k, v in found.processor.batch(raws).items() if k != "id"}
    assert found.model.zeros(8).keys() <= batch.keys()
    expected = built.task.model.apply({"params": params}, batch, train=False)["logits"]

    def logits(found):
        run = jax.jit(lambda p, b: found.model.apply({"params": p}, b))
        return np.asarray(run(found.params, batch)["logits"].astype(jnp.float32))

    np.testing.assert_allclose(logits(found), expected, atol=1e-5)
    mesh = meshes.make_mesh(data=2, fsdp=4)
    spread = mmflax.from_pretrained(workdir, mesh=mesh)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(spread.params)} == {mesh}
    half = mmflax.from_pretrained(workdir, dtype="bfloat16")
    assert half.model.module.backbone.image_encoder.layer.dtype == jnp.bfloat16
    with pytest.raises(MmflaxError, match="mmflax convert .* DST"):
        found.save(workdir / "copy")


@pytest.mark.slow
def test_a_run_computes_in_half_precision(trained):
    found = mmflax.from_pretrained(trained[0])
    half = mmflax.from_pretrained(trained[0], dtype="bfloat16")
    batch = found.model.zeros(8)
    exact, near = (
        np.asarray(model.model.apply({"params": model.params}, batch)["logits"], np.float32)
        for model in (found, half)
    )
    assert 0 < np.abs(near - exact).max() < 0.1
    assert half.hidden_states(batch)


def test_modality_views_depend_on_nothing_that_they_leave_out(trained):
    """Other pixels cannot change text-only accuracy, nor other words image-only accuracy."""
    workdir, config, _ = trained
    _, built, params, _ = restore(workdir)
    dataset = Experiment(config).dataset()
    batch = next(iter(pipeline.eval_batches(dataset.source("test"), built.processor, batch_size=8)))
    batch.pop("id")
    rng = np.random.default_rng(0)
    from mmflax.evaluation.modality_views import without_image, without_text

    @jax.jit
    def logits(batch):
        return built.task.model.apply({"params": params}, batch, train=False)["logits"]

    tokens = built.task.model.backbone.image_encoder.num_tokens()
    other = {**batch, "image": rng.standard_normal(batch["image"].shape, dtype=np.float32)}
    np.testing.assert_array_equal(
        logits(without_image(batch, tokens)), logits(without_image(other, tokens))
    )
    assert np.abs(np.asarray(logits(batch) - logits(other))).max() > 1e-4
    other = {**batch, "tokens": rng.integers(5, 40, batch["tokens"].shape, dtype=np.int32)}
    np.testing.assert_array_equal(logits(without_text(batch)), logits(without_text(other)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(modle={}), "did you mean 'model'"),
        (lambda c: c["model"].pop("fusion"), "no model.fusion"),
        (lambda c: c["model"]["fusion"].update(dept=2), "did you mean 'depth'"),
        (lambda c: c["model"]["fusion"].update(name="coattention"), "did you mean 'co_attention'"),
        (lambda c: c["train"].update(step=5), "did you mean 'steps'"),
        (lambda c: c["optim"].update(weight_deca=0.1), "did you mean 'weight_decay'"),
        (lambda c: c["optim"].update(name="adam"), "known are adamw"),
        (lambda c: c["data"].update(batch_size=12), "give --config.data.batch_size=16"),
        (lambda c: c["data"].update(batch_size="big"), "batch_size is 'big' .str.; expected int"),
        (lambda c: c["mesh"].update(data=16), "does not fit 8 devices"),
        (lambda c: c["mesh"].update(tensr=2), "did you mean 'tensor'"),
        (lambda c: c["processor"].update(image_sizes=3), "did you mean 'image_size'"),
        (lambda c: c["task"].update(name="vqaa"), "did you mean 'vqa'"),
        (lambda c: c["checkpoint"].update(keep=1), "not a known key"),
        (lambda c: c["evaluation"].update(views=["full", "blind"]), "expected 'full', and any of"),
    ],
)
def test_bad_configs_stop_before_anything_is_written(shapes_dir, tmp_path, change, message):
    config = tiny.config(shapes_dir)
    change(config)
    with pytest.raises(MmflaxError, match=message):
        train(config, str(tmp_path / "w"), quiet=True)
    assert not (tmp_path / "w").exists()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(MmflaxError, match="no config.json"):
        load(str(tmp_path))


def test_training_on_a_cpu_keeps_the_memory_that_it_frees(tmp_path, monkeypatch):
    from mmflax.run import train as training

    class Kept(Exception):
        pass

    def keep():
        raise Kept

    monkeypatch.setattr(training, "keep_freed_memory", keep)
    with pytest.raises(Kept):
        training.train(tiny.config(str(tmp_path)), str(tmp_path / "run"), quiet=True)
