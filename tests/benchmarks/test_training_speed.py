"""The benchmark of a training's speed runs and adds up."""

import json
import sys

import pytest

from benchmarks import training_speed


@pytest.mark.slow
def test_rates_are_those_of_the_config(monkeypatch, capsys, tmp_path):
    words = ["data.num_scenes=80", "data.batch_size=16", f"data.data_dir={tmp_path}"]
    command = ["training_speed", "--config", "configs/shapes_vqa.py", "--steps=3", "--rounds=1"]
    monkeypatch.setattr(sys, "argv", [*command, *(f"--config.{word}" for word in words)])
    training_speed.main()
    report = json.loads(capsys.readouterr().out)
    assert report["batch_size"] == 16 and report["parameters"] > 100_000
    rates = report["examples_per_second"]
    assert set(rates) == {"input", "step", "loop"} and min(rates.values()) > 0
    # What a step computes, by its FLOPs and by its rate.
    seconds = 16 / rates["step"]
    found = report["step_gflops_per_second"]
    assert found == pytest.approx(report["gflops_a_step"] / seconds, rel=0.05)
    assert report["loop_over_step"] == pytest.approx(rates["step"] / rates["loop"], rel=0.05)
