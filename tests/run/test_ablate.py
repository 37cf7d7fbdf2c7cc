"""The ablation: which configs it makes, how it counts, and that it goes on where it was."""

import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

from mmflax import cli
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.run import ablate, ablation_report, match_parameters
from tests import tiny


@pytest.fixture
def config(shapes_dir):
    found = tiny.config(shapes_dir)
    found["model"]["fusion"]["form"] = "meter"
    return found


@pytest.fixture(scope="module")
def processor(trained):
    return Processor.load(trained[0])


def test_switching_drops_only_what_a_kind_lacks(config):
    before = copy.deepcopy(config)
    found, dropped = match_parameters.switch(config, "concat")
    assert config == before
    assert dropped == ("form",)
    fusion = {k: v for k, v in config["model"]["fusion"].items() if k != "form"}
    assert found["model"]["fusion"] == fusion | {"name": "concat"}
    assert {k: v for k, v in found.items() if k != "model"} == {
        k: v for k, v in config.items() if k != "model"
    }
    assert match_parameters.switch(config, "co_attention") == (config, ())


def test_counts_are_those_of_the_model_that_trains(trained):
    workdir, config, result = trained
    import jax

    size = sum(leaf.size for leaf in jax.tree.leaves(result.state.params))
    assert match_parameters.count_parameters(config, Processor.load(workdir)) == size


def test_kinds_are_matched_by_mlp_dim_alone_where_that_suffices(config, processor):
    kinds = ("co_attention", "concat", "gated")
    reference, *others = match_parameters.variants(config, kinds, processor)
    assert reference.config == config
    plain = match_parameters.variants(config, kinds, processor, match=False)
    for variant, unmatched in zip(others, plain[1:], strict=True):
        assert abs(unmatched.parameters - reference.parameters) > 0.02 * reference.parameters
        assert abs(variant.parameters - reference.parameters) <= 0.02 * reference.parameters
        assert variant.fusion["mlp_dim"] % 8 == 0
        assert variant.fusion["depth"] == config["model"]["fusion"]["depth"]
        assert variant.parameters == match_parameters.count_parameters(variant.config, processor)


def fake(per_layer, fixed=1000):
    """A counter as of a model whose layers have `per_layer` and 2 * width * mlp_dim parameters."""

    def count(config):
        fusion = config["model"]["fusion"]
        return fixed + fusion["depth"] * (per_layer + 2 * fusion["width"] * fusion["mlp_dim"])

    return count


def fusion_config(**fields):
    return {"model": {"fusion": {"name": "concat", "width": 10, "depth": 2, "num_heads": 2,
                                 "mlp_dim": 40, **fields}}}  # fmt: skip


@pytest.mark.parametrize("target", [1500, 2000, 3333, 4000])
def test_the_width_is_the_nearest_multiple_of_8(target):
    count = fake(10)
    widths = [fusion_config(mlp_dim=8 * k) for k in range(1, 11)]
    found = match_parameters.fit(fusion_config(), target, count)
    best = min(abs(count(c) - target) for c in widths)
    if best <= 0.02 * target:
        assert abs(count(found) - target) == best
    assert abs(count(found) - target) <= 0.02 * target


def test_the_depth_changes_as_little_as_possible_and_only_if_need_be():
    count = fake(1000, fixed=0)  # a layer has 1,160 to 2,600
    assert match_parameters.fit(fusion_config(), 4890, count)["model"]["fusion"]["depth"] == 2
    found = match_parameters.fit(fusion_config(), 6000, count)["model"]["fusion"]
    assert found["depth"] == 3  # 2 layers reach 5,200; 4 would fit too
    assert abs(count({"model": {"fusion": found}}) - 6000) <= 120
    assert match_parameters.fit(fusion_config(), 2000, count)["model"]["fusion"]["depth"] == 1


def test_what_cannot_be_matched_is_said():
    with pytest.raises(MmflaxError, match="'concat' cannot be given 10,000,000 .*--no-match"):
        match_parameters.fit(fusion_config(), 10_000_000, fake(10))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(kinds=["concat", "gatedd"]), "did you mean 'gated'"),
        (dict(kinds=[]), "0 kinds of fusion"),
        (dict(seeds=0), "0 seeds"),
        (dict(split="dev"), "no split 'dev'"),
    ],
)
def test_bad_calls_stop_before_anything_trains(change, message, config, tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "train", None)
    with pytest.raises(MmflaxError, match=message):
        ablate.ablate(config, str(tmp_path / "a"), **{"kinds": ["concat"], **change})
    assert not (tmp_path / "a").exists()


def test_seeds_are_the_same_for_all_kinds_and_come_in_turn(config, tmp_path):
    runs = ablate.plan(
        config, str(tmp_path), ["concat", "co_attention", "concat"], seeds=2, split="test",
        match=False,
    )  # fmt: skip
    names = ["concat-seed3", "co_attention-seed3", "concat-seed4", "co_attention-seed4"]
    assert [run.name for run in runs] == names
    assert [run.config["seed"] for run in runs] == [3, 3, 4, 4]


def test_a_run_of_another_config_is_refused_before_any_trains(config, tmp_path, monkeypatch):
    run = tmp_path / "concat-seed3"
    run.mkdir()
    other, _ = match_parameters.switch(config, "concat")
    other["optim"]["weight_decay"] = 0.5
    (run / "config.json").write_text(json.dumps(other))
    monkeypatch.setattr(ablate, "train", None)
    with pytest.raises(MmflaxError, match="weight_decay: 0.5 -> 0.01"):
        ablate.ablate(config, str(tmp_path), ["gated", "concat"], seeds=1, match=False)


def result(value, colour, interval, blind=0.25):
    return {
        "examples": 50,
        "metrics": {
            "full": {"accuracy": value, "accuracy/colour": colour, "loss": 1.0},
            "text_only": {"accuracy": blind},
        },
        "intervals": {"accuracy": interval},
    }


RESULTS = [
    ("concat", 0, result(0.5, 0.9, [0.4, 0.6])),
    ("gated", 0, result(0.8, 0.7, [0.7, 0.9])),
    ("concat", 1, result(0.6, 0.8, [0.4, 0.8])),
    ("gated", 1, result(0.8, 0.6, [0.6, 0.9], blind=0.35)),
]


def test_means_and_both_intervals_by_hand():
    found = ablation_report.summarize(RESULTS, "accuracy", "concat")
    concat, gated = found["kinds"]["concat"], found["kinds"]["gated"]
    assert concat["values"] == [0.5, 0.6] and concat["mean"] == pytest.approx(0.55)
    # s = 0.1 / sqrt(2), over sqrt(2), times t = tan(0.475 pi), as with one degree of freedom.
    half = 0.05 * math.tan(0.475 * math.pi)
    assert concat["seed_interval"] == pytest.approx([0.55 - half, 0.55 + half])
    assert concat["example_interval"] == pytest.approx([0.4, 0.7])
    assert gated["seed_interval"] == pytest.approx([0.8, 0.8])
    assert gated["difference"] == pytest.approx(0.25) and concat["difference"] is None
    assert gated["difference_interval"] == pytest.approx([0.25 - half, 0.25 + half])
    assert gated["by_type"]["colour"]["mean"] == pytest.approx(0.65)
    assert gated["text_only"] == pytest.approx(0.3)
    assert found["seeds"] == [0, 1] and found["examples"] == 50


def test_students_quantiles_shrink_to_the_normal_one():
    assert ablation_report.seed_interval([0.5]) is None
    halves = []
    for k in range(2, 40):
        values = [0.0, 1.0] * (k // 2) + [0.5] * (k % 2)
        low, high = ablation_report.seed_interval(values)
        halves.append((high - low) / 2 / (np.std(values, ddof=1) / math.sqrt(k)))
    # Any statistics textbook, for 1, 2, 30 and 38 degrees of freedom.
    quantiles = halves[0], halves[1], halves[29], halves[37]
    assert quantiles == pytest.approx((12.7062, 4.3027, 2.0423, 2.0244), abs=5e-5)
    assert all(later <= former + 1e-9 for former, later in zip(halves, halves[1:], strict=False))


def test_an_unknown_metric_lists_the_known():
    with pytest.raises(MmflaxError, match="'bleu'.*accuracy, accuracy/colour, loss"):
        ablation_report.summarize(RESULTS, "bleu", "concat")
    assert ablation_report.summarize(RESULTS, None, "concat")["metric"] == "accuracy"


def test_the_table_says_what_its_columns_are(tmp_path):
    found = ablation_report.summarize(RESULTS, "accuracy", "concat")
    for entry, dropped in zip(found["kinds"].values(), ([], ["form"]), strict=True):
        entry |= {"parameters": 12345, "dropped": dropped, "mlp_dim": 64, "depth": 2}
    found |= {"split": "test", "steps": 9, "matched_within": 0.02}
    ablation_report.write(found, tmp_path)
    text = (tmp_path / "ablation.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| gated", "| concat"]
    assert lines[2] == (
        "| gated | 12,345 | 64 | 2 | 80.0 | 80.0 .. 80.0 | 65.0 .. 90.0 | 25.0 (-38.5 .. 88.5) | "
        "30.0 | 65.0 |"
    )
    for words in ("over the k seeds", "bootstrap", "gated has no form", "within 2%", "50 examples"):
        assert words in text
    assert json.loads((tmp_path / "ablation.json").read_text()) == found
    with Image.open(tmp_path / "ablation.png") as image:
        assert image.size[0] > 600


@pytest.mark.slow
def test_a_misspelt_metric_is_known_before_anything_trains(config, tmp_path):
    with pytest.raises(MmflaxError, match="'accurcy'.*choose one of accuracy, accuracy/color"):
        ablate.ablate(config, str(tmp_path / "a"), ["concat"], metric="accurcy", seeds=1)
    assert not (tmp_path / "a").exists()


def test_cores_are_shared_out():
    import os

    cores = sorted(os.sched_getaffinity(0))
    assert ablate._shares(1) == [cores]
    many = ablate._shares(len(cores))
    assert sorted(core for share in many for core in share) == cores
    assert all(len(share) == 1 for share in ablate._shares(2 * len(cores)))


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_whole_ablation_and_its_continuation(jobs, config, tmp_path, capsys, monkeypatch):
    path = tmp_path / "tiny.py"
    path.write_text(
        "import json\nfrom ml_collections import ConfigDict\n"
        f"def get_config(arg=None):\n  return ConfigDict(json.loads({json.dumps(config)!r}))\n"
    )
    words = ["ablate", "--config", str(path), "--fusion", "concat,co_attention", "--seeds", "2",
             "--steps", "2", "--workdir", str(tmp_path / "a"), "--jobs", str(jobs), "--json",
             "--config.optim.schedule.warmup_steps=1"]  # fmt: skip
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err.count("finished,") == 4 and "concat has no form" in err
    assert found == json.loads((tmp_path / "a" / "ablation.json").read_text())
    counts = [entry["parameters"] for entry in found["kinds"].values()]
    assert abs(counts[0] - counts[1]) <= 0.02 * counts[1]
    evaluated = json.loads((tmp_path / "a" / "concat-seed4" / "eval" / "test.json").read_text())
    assert evaluated["metrics"]["full"]["accuracy"] == found["kinds"]["concat"]["values"][1]
    assert evaluated["step"] == 2
    # One run is lost: only that one is made again, and to the same numbers.
    (tmp_path / "a" / "concat-seed4" / "eval" / "test.json").unlink()
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert "3 of 4 runs are finished" in err and err.count("finished,") == 1
    assert json.loads(out) == found
    # More steps go on from where the runs are.
    assert cli.main([word if word != "2" or at != words.index("--steps") + 1 else "3"
                     for at, word in enumerate(words)]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert err.count("finished,") == 4 and json.loads(out)["steps"] == 3


@pytest.mark.slow
def test_a_run_that_fails_beside_others_is_named(config, tmp_path):
    run = tmp_path / "a" / "concat-seed3"
    run.mkdir(parents=True)
    (run / "checkpoints").write_text("in the way")
    with pytest.raises(MmflaxError, match="The run concat-seed3 failed: .*checkpoint.*log.txt"):
        ablate.ablate(config, str(tmp_path / "a"), ["concat"], seeds=1, jobs=2, log=lambda _: None)
