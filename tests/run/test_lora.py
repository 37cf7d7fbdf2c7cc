"""Runs with adapters: what trains, what is kept, and that it is the base that was adapted."""

import json
import shutil

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mmflax import paths
from mmflax.config.overrides import override
from mmflax.config.reading import load_config
from mmflax.config.sections import LoraConfig
from mmflax.distributed.mesh import compile_step, put_batch
from mmflax.errors import MmflaxError
from mmflax.models.called import traced
from mmflax.models.lora import A, B
from mmflax.pretrained.checkpoint import from_pretrained
from mmflax.run import adapters, base, convert, init_sources
from mmflax.run.assemble import adapters_of_run, assemble
from mmflax.run.build import Experiment, example_batch
from mmflax.run.check import _learn, check
from mmflax.run.evaluate import evaluate
from mmflax.run.load import load
from mmflax.run.restore import restore
from mmflax.run.train import train, train_step
from mmflax.training.state import create_sharded
from tests import tiny
from tests.run.test_recipes import on_shapes, small, trained_twice, with_words


def lora_config(source="somewhere", data="unused", *words, **train):
    config = tiny.config(data, **train) | {"init": {"from": str(source)}, "lora": {"rank": 4}}
    return override(config, words)


# Less to compile: a layer each of image and text.
SMALL = ("--config.model.image_encoder.depth=1", "--config.model.fusion.name=concat")


def assembled(*words, devices=1):
    experiment = Experiment(lora_config("somewhere", "unused", *SMALL, *words))
    mesh = experiment.mesh(jax.devices()[:devices])
    return experiment, assemble(experiment, _learn(experiment, False), mesh)


def begun(experiment, built):
    """All parameters, and the state at step 0; the base is drawn, not loaded."""
    key = jax.random.key(0)
    params = jax.jit(built.init)(key)
    state = create_sharded(
        lambda key: built.trained(params, key),
        *(built.tx, key, built.mesh, experiment.rules),
        frozen=built.abstract.frozen,
    )
    flat = paths.leaves(params)
    frozen = {path: flat[path] for path in built.adapters.frozen}
    return params, state.replace(
        frozen=jax.device_put(paths.nested(frozen), _places(built.abstract.frozen))
    )


def step_of(experiment, built, state):
    """The compiled step, and a batch."""
    batch = put_batch(batch_of(built), built.mesh)
    return compile_step(train_step(experiment, built), state, batch, built.mesh), batch


def batch_of(built, rows=8):
    batch = {name: np.asarray(x) for name, x in example_batch(built.processor, rows).items()}
    draw = np.random.default_rng(0)
    batch["image"] = draw.normal(size=batch["image"].shape).astype(np.float32)
    batch["tokens"] = draw.integers(0, 8, batch["tokens"].shape).astype(np.int32)
    return batch | {
        "text_mask": np.ones_like(batch["text_mask"]),
        "label": np.arange(rows, dtype=np.int32) % 2,
        "mask": np.ones(rows, bool),
    }


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_a_step_trains_the_adapters_and_what_is_new():
    experiment, built = assembled("--config.lora.alpha=8")
    made = built.adapters
    assert experiment.lora.scale == 2.0 and len(made.adapters) == 8
    assert {path.split("/")[0] for path in made.whole} == {"head"}
    thin = {path for path in paths.leaves(built.abstract.params) if path not in made.whole}
    assert len(thin) == 16 and all(path.endswith((f"/{A}", f"/{B}")) for path in thin)
    # Moments are of what trains, and of nothing else; and there are two of each, beside a counter.
    moments = [leaf for leaf in jax.tree.leaves(built.abstract.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * count(built.abstract.params)
    assert count(built.abstract.params) < 0.15 * count(built.abstract.frozen)

    params, state = begun(experiment, built)
    merged = built.merge(paths.union(state.params, state.frozen))
    tiny.same(merged, params)  # so the run begins as the base
    before = jax.device_get((state.params, state.frozen))
    step, batch = step_of(experiment, built, state)
    for _ in range(2):  # the schedule's first rate is 0
        state, sums = step(state, batch)
    new = state
    tiny.same(jax.device_get(new.frozen), before[1])
    old, after = paths.leaves(before[0]), paths.leaves(new.params)
    moved = {path for path in old if not np.array_equal(old[path], after[path])}
    assert set(made.whole) <= moved
    assert {path for path in thin if path.endswith(f"value/{B}")} <= moved
    assert np.isfinite(sums["loss"][0]) and int(new.skipped) == 0


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--config.train.accumulate=2",)])
def test_meshes_and_micro_batches_give_the_numbers_of_one_device(words):
    plain = ("--config.model.text_encoder.dropout_rate=0.0", "--config.optim.name=sgd")
    found = []
    for devices, more in (
        (1, ()),
        (8, ("--config.mesh.fsdp=2", "--config.mesh.tensor=2", *words)),
    ):
        experiment, built = assembled(*plain, *more, devices=devices)
        _, state = begun(experiment, built)
        drawn = {  # away from B = 0
            path: leaf + 0.05 * jax.random.normal(jax.random.key(i), leaf.shape)
            for i, (path, leaf) in enumerate(paths.leaves(state.params).items())
        }
        state = state.replace(params=jax.device_put(paths.nested(drawn), _places(state.params)))
        step, batch = step_of(experiment, built, state)
        new, sums = step(state, batch)
        new, sums = step(new, batch)  # the schedule's first rate is 0
        found.append((paths.leaves(jax.device_get(new.params)), sums["loss"], drawn))
        kernel = "backbone/image_encoder/encoder/layers_0/attention/query/kernel"
        merged = paths.leaves(built.merge(paths.union(new.params, new.frozen)))[kernel]
        assert merged.sharding.spec == PartitionSpec("fsdp", "tensor", None)
    (one, loss, drawn), (other, other_loss, _) = found
    np.testing.assert_allclose(other_loss[0], loss[0], rtol=1e-5)
    for path, value in one.items():
        np.testing.assert_allclose(other[path], value, atol=2e-6, err_msg=path)
        assert not np.array_equal(value, drawn[path]), path


def _places(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


@pytest.fixture(scope="module")
def drawn():
    """What draws the parameters of the config's model, and what tracing it finds."""
    experiment = Experiment(lora_config())
    task = experiment.task(_learn(experiment, False))
    batch = example_batch(_learn(experiment, False), 1)

    def init(key):
        return task.model.init(key, batch, train=False)["params"]

    return init, traced(init)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--config.lora.targets=('quer/kernel',)",), "has 'quer/kernel', which matches no para"),
        (("--config.lora.targets=('/fc1/bias$',)",), r"fc1/bias \[.*\] of a Dense; only kernels"),
        (("--config.lora.targets=('head/fc1/kernel',)",), "only 'head/fc1/kernel' and others that"),
        (("--config.lora.targets=('(',)",), "lora.targets has '\\(', which is no regex"),
        (("--config.lora.targets=()",), "lora.targets is empty"),
        (("--config.lora.also_train=('nrom',)",), "also_train has 'nrom', which matches no para"),
        (("--config.lora.rank=0",), "lora.rank is 0; expected a number at least 1"),
        (("--config.lora.rnak=4",), "did you mean 'rank'"),
        (("--config.lora.rank=None", "--config.lora.alpha=4"), "gives lora.alpha and no lora.rank"),
        (("--config.init.from=None",), "init loads nothing that could be adapted"),
        (("--config.optim.freeze=('^backbone/',)",), "others that train whole or are in optim.fre"),
        (("--config.optim.freeze=('^bakcbone/',)",), "optim.freeze: '.bakcbone/' decides no param"),
    ],
)
def test_mistakes_are_one_sentence(words, message, drawn, monkeypatch):
    init, found = drawn
    monkeypatch.setattr(adapters, "traced", lambda init: found)
    with pytest.raises(MmflaxError, match=message):
        experiment = Experiment(lora_config("somewhere", "unused", *words))
        made = adapters_of_run(experiment, init)
        experiment.optimizer(made.shapes(), made.frozen)


def test_they_are_found_before_data_are_read():
    config = lora_config("somewhere", "unused", "--config.lora.targets=('quer/kernel',)")
    with pytest.raises(MmflaxError, match="which matches no parameter"):
        check(Experiment(config))
    check(Experiment(config | {"lora": {"rank": 4}}))


def test_parts_that_are_not_loaded_train_whole_and_rules_of_frozen_ones_are_idle(drawn):
    words = (
        "--config.lora.also_train=('text_encoder/.*/bias$',)",
        "--config.optim.lr_multipliers=(('^backbone/image_encoder/', 0.1), ('embedding', 2.0))",
        "--config.optim.no_decay=('patch_embedding', 'bias$')",
        "--config.optim.freeze=('image_encoder/encoder/layers_0/',)",
    )
    config = lora_config("unused", "unused", *words)
    config["init"] = {"image_encoder": {"from": "a"}, "text_encoder": {"from": "b"}}
    experiment = Experiment(config)
    made = adapters_of_run(experiment, drawn[0])
    experiment.optimizer(made.shapes(), made.frozen)
    parts = {path.removeprefix("backbone/").split("/")[0] for path in made.whole}
    assert parts == {"fusion", "head", "text_encoder"}
    assert all(path.endswith("bias") for path in made.whole if "/text_encoder/" in path)
    adapted = {path for path in made.adapters if "image_encoder" in path}
    assert {path.split("/")[3] for path in adapted} == {"layers_1"}
    assert not any("fusion" in path for path in made.adapters)


def test_rates_by_layer_count_the_frozen_layers_too(drawn):
    """Adapters of the first of two layers: it is two layers below what comes after them."""
    words = (
        "--config.lora.targets=('image_encoder/encoder/layers_0/attention/query/kernel',)",
        "--config.optim.layer_decay=(('^backbone/image_encoder/', 0.5), ('text_encoder/', 0.9))",
        "--config.optim.name=sgd",
        "--config.optim.momentum=0.0",
        "--config.optim.weight_decay=0.0",
        "--config.optim.schedule.name=constant",
    )
    config = lora_config("somewhere", "unused", *words)
    config["optim"] |= {"schedule": {"name": "constant", "peak": 1.0}, "clip_norm": None}
    experiment = Experiment(config)
    made = adapters_of_run(experiment, drawn[0])
    tx, _ = experiment.optimizer(made.shapes(), made.frozen)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), made.shapes())
    updates = paths.leaves(tx.update(ones, tx.init(ones), ones)[0])
    thin = {path: leaf for path, leaf in updates.items() if path not in made.whole}
    assert len(thin) == 2
    assert {float(leaf.max()) for leaf in thin.values()} == {-0.25}
    assert float(updates["head/fc1/kernel"].max()) == -1.0


def test_scales():
    assert LoraConfig(rank=4).scale == 1.0
    assert LoraConfig(rank=4, alpha=16).scale == 4.0
    assert LoraConfig(rank=4, alpha=16, rank_stabilized=True).scale == 8.0
    assert LoraConfig().rank is None


@pytest.fixture(scope="module")
def source(shapes_dir, tmp_path_factory):
    """A run to start from."""
    root = tmp_path_factory.mktemp("source")
    train(tiny.config(shapes_dir, steps=3, eval_every=None), str(root), quiet=True)
    return root


def whole_config(source, shapes_dir, *words, **fields):
    config = lora_config(source, shapes_dir, *words, **fields)
    return config | {"processor": config["processor"] | {"from": str(source)}}


@pytest.mark.slow
def test_a_run_keeps_what_it_trains_and_resumes_bit_for_bit(source, shapes_dir, tmp_path):
    words = ("--config.train.ema_decay=0.5", "--config.lora.dropout=0.1")
    config = whole_config(source, shapes_dir, *words)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train(config, str(whole), quiet=True)
    shorter = config | {"train": config["train"] | {"steps": 4}}
    # The schedule is the longer run's in both.
    for one in (config, shorter):
        one["optim"] = config["optim"] | {"schedule": {"name": "constant", "peak": 1e-3}}
    for name in ("whole", "halves"):
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    train(config, str(whole), quiet=True)
    train(shorter, str(halves), quiet=True)
    result = train(config, str(halves), quiet=True)
    assert result.step == 6
    (_, _, expected, _), (_, built, found, step) = restore(whole, 6), restore(halves, 6)
    assert step == 6
    tiny.same(found, expected)
    assert set(paths.leaves(found)) == set(paths.leaves(built.shapes))
    (seal,) = halves.glob("checkpoints/6/SEAL")
    arrays = json.loads(seal.read_bytes().partition(b"\n")[2])["arrays"]
    trained = [name for name in arrays if name.startswith("params/")]
    assert len(trained) == len(jax.tree.leaves(built.abstract.params))
    assert not any(name.endswith(("query/kernel", "mlp/fc1/kernel")) for name in arrays)


@pytest.mark.slow
def test_a_workdir_answers_with_its_base_and_says_what_is_missing(source, shapes_dir, tmp_path):
    moved, run, kept = tmp_path / "base", tmp_path / "run", tmp_path / "kept"
    shutil.copytree(source, moved)
    config = whole_config(moved, shapes_dir)
    reports = []
    trained = train(config, str(run), quiet=True, at_end=reports.append)
    (report,) = reports
    assert report.note is None and report.examples
    assert (report.mistakes is not None) == (report.wrong > 0)
    train(override(config, ["--config.lora.save_base=True"]), str(kept), quiet=True)
    first = evaluate(str(run), "validation")["metrics"]["full"]
    assert first["loss"] == pytest.approx(trained.metrics["validation/loss"], abs=1e-5)
    assert load(str(run)).predict(np.zeros((32, 32, 3), np.uint8), "is it red?").answer
    # A run that starts from an adapted one has its merged weights.
    _, _, params, _ = restore(run)
    flat = {path.removeprefix("backbone/"): leaf for path, leaf in paths.leaves(params).items()}
    merged = init_sources.parameters(str(run))
    assert merged.keys() == flat.keys()
    for path, leaf in merged.items():
        np.testing.assert_allclose(leaf.read(), flat[path], atol=1e-6, err_msg=path)

    record = run / base.RECORD
    text = record.read_text()
    record.write_text(text.replace(json.loads(text)["sha256"][:8], "0" * 8))
    with pytest.raises(MmflaxError, match="are not those that the adapters in .* were trained on"):
        evaluate(str(run), "validation")
    with pytest.raises(MmflaxError, match="are not those that the adapters in .* were trained on"):
        init_sources.parameters(str(run))
    record.write_text(text)
    elsewhere = tmp_path / "elsewhere"
    moved.rename(elsewhere)
    with pytest.raises(MmflaxError, match=f"need the weights .*{moved}.*init.from=PATH"):
        evaluate(str(run), "validation")
    words = [f"--config.init.from={elsewhere}"]
    again = evaluate(str(run), "validation", overrides=words)["metrics"]["full"]
    assert again["loss"] == first["loss"]
    with pytest.raises(MmflaxError, match="are not those that the adapters"):
        evaluate(str(run), "validation", overrides=[f"--config.init.from={kept}"])
    shutil.rmtree(elsewhere)
    again = evaluate(str(kept), "validation")["metrics"]["full"]
    assert again["loss"] == pytest.approx(first["loss"], abs=1e-6)


@pytest.mark.slow
def test_an_adapted_checkpoint_goes_back_merged(shapes_dir, tmp_path):
    """CLIP: every tensor of the written file is the formula of peft on the file it came from."""
    source = with_words("clip", tmp_path / "clip")
    config = small(load_config("configs/clip.py:coco"), "clip", source)
    config["processor"]["from"] = str(source)
    config = on_shapes(config, {"task": "retrieval"}, shapes_dir)
    config["lora"] = {"rank": 2, "alpha": 8, "dropout": 0.1}
    trained_twice(config, str(tmp_path / "run"))
    assert convert.convert(str(tmp_path / "run"), str(tmp_path / "back")) == []

    experiment, built, merged, step = restore(tmp_path / "run")
    store = experiment.store(tmp_path / "run")
    state, _, _ = store.restore({"params": built.abstract.params}, step, partial=True)
    thin = {k.removeprefix("backbone/"): np.asarray(x) for k, x in paths.leaves(state).items()}
    thin = {path.removeprefix("params/backbone/"): leaf for path, leaf in thin.items()}
    before, after = (from_pretrained(tmp_path / name) for name in ("clip", "back"))
    old, new = paths.leaves(before.params), paths.leaves(after.params)
    adapted = {path.removeprefix("backbone/") for path in built.adapters.adapters}
    assert adapted < set(old)
    for path, weight in old.items():
        expected = np.asarray(weight, np.float64)
        if path in adapted:
            a, b = (thin[path.removesuffix("kernel") + name].astype(np.float64) for name in (A, B))
            assert b.any()
            columns = expected.reshape(expected.shape[0], -1).T  # [out in], as in PyTorch
            columns = columns + 8 / 2 * b.reshape(2, -1).T @ a.reshape(-1, 2).T
            expected = columns.T.reshape(expected.shape)
        np.testing.assert_allclose(new[path], expected, atol=1e-6, err_msg=path)
    name = "text_model.encoder.layers.0.self_attn.q_proj.weight"
    assert not np.array_equal(before.tensors()[name], after.tensors()[name])
