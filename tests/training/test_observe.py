"""What a run shows and writes."""

import io
import json

import jax
import jax.numpy as jnp
import pytest

from mmflax.distributed.mesh import make_mesh
from mmflax.training import observe

VALUES = {
    "loss": 1.25,
    "accuracy": 0.5,
    "grad_norm": 3.0,
    "skipped": 0.0,
    "steps_per_second": 12.34,
    "examples_per_second": 394.9,
    "mfu": 0.41,
    "eta_seconds": 83.2,
}


def test_plain_lines_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = observe.Progress(stream=stream)
    progress.start(0, 100)
    progress.record(10, VALUES)
    progress.record(10, {"val/accuracy": 0.5})
    progress.message("compiled [red] in 3 s")
    progress.close()
    assert stream.getvalue().splitlines() == [
        "step 10/100  loss 1.2500  accuracy 0.5000  12.3 steps/s  394.9 examples/s  MFU 41.0%  "
        "ETA 0:01:23",
        "step 10/100  val/accuracy 0.5000",
        "compiled [red] in 3 s",
    ]


def test_a_bar_in_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    stream = io.StringIO()
    progress = observe.Progress(stream=stream, terminal=True)
    progress.start(0, 100)
    progress.record(10, VALUES)
    progress.message("compiled [red] in 3 s")
    progress.record(10, {"val/accuracy": 0.5})
    progress.close()
    text = stream.getvalue()
    assert "10/100" in text and "ETA 0:01:23" in text
    assert "compiled [red] in 3 s" in text and "val/accuracy 0.5000" in text


def test_metrics_file_cuts_what_a_resumed_run_repeats(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "loss": 2.0}\n{"step": 6, "lo')
    file = observe.MetricsFile(tmp_path)
    file.start(2, 10)
    file.record(3, {"loss": 0.5, "bad": float("nan")})
    file.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 2, "loss": 1.0}, {"step": 3, "loss": 0.5}]


def test_tensorboard_gets_the_scalars(tmp_path):
    board = observe.TensorBoard(tmp_path)
    board.start(0, 10)
    board.record(1, {"loss": 0.5})
    board.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_run_json_keeps_earlier_starts(tmp_path):
    mesh = make_mesh(2, 2, 2)
    observe.write_run(tmp_path, mesh, parameters=5)
    observe.write_run(tmp_path, mesh, parameters=7)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert run["versions"]["jax"] == jax.__version__ and run["devices"]["count"] == 8
    assert run["parameters"] == 7 and [start["parameters"] for start in run["earlier"]] == [5]
    assert run["command"] and "git" in run


def test_parameter_table():
    params = {
        "encoder": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)},
        "head": {"kernel": jnp.zeros((8, 1000))},
    }
    table = observe.parameter_table(params)
    kernel = next(line for line in table.splitlines() if line.startswith("head/kernel"))
    assert "[8, 1000]" in kernel and "float32" in kernel and kernel.endswith("8,000")
    assert table.splitlines()[-1].split() == ["total", "8,040"]
    short = observe.parameter_table(params, depth=1).splitlines()
    assert [line.split() for line in short] == [["encoder", "40"], ["head", "8,000"],
                                               ["total", "8,040"]]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("cpu", None),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
    ],
)
def test_peaks(kind, peak):
    assert observe.peak_flops(kind) == peak


def test_utilization():
    class Device:
        device_kind = "TPU v4"

    assert observe.utilization(275e12, 2.0, [Device()] * 4) == pytest.approx(1 / 8)
    assert observe.utilization(1e12, 1.0, jax.devices()) is None
