"""A whole run on a folder that is moved and that grows, by the commands of the command line."""

import shutil

import pytest

from mmflax.cli import main
from tests.run.test_data_record import write

pytestmark = pytest.mark.slow
SMALL = [
    "--config.model.image_encoder.depth=1",
    "--config.model.text_encoder.depth=1",
    "--config.model.fusion.depth=1",
    "--config.processor.image_size=16",
    "--config.model.image_encoder.patch_size=8",
    "--config.data.batch_size=4",
    "--config.evaluation.batch_size=4",
    "--config.evaluation.bootstrap=0",
    "--config.optim.schedule.warmup_steps=1",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2",
    "--config.mesh.data=1",
]


def test_moved_and_grown(tmp_path, monkeypatch, capsys):
    import jax

    if jax.device_count() > 1:
        SMALL[-1] = f"--config.mesh.data={1 if jax.device_count() == 1 else -1}"
        SMALL[5] = f"--config.data.batch_size={4 * jax.device_count()}"
        SMALL[6] = f"--config.evaluation.batch_size={4 * jax.device_count()}"
    write(tmp_path / "data", "train", range(16), answers=("Yes", "no"))
    write(tmp_path / "data", "test", range(100, 104), answers=("yes", "no"))
    monkeypatch.chdir(tmp_path)

    def train(path, steps, *words):
        config = f"configs/folder.py:vqa:{path}"
        command = ["train", "--config", config, "--workdir", str(tmp_path / "run"), *SMALL]
        code = main([*command, f"--config.train.steps={steps}", *words])
        return code, "".join(capsys.readouterr())

    def evaluate(*words):
        code = main(["evaluate", "--workdir", str(tmp_path / "run"), *words])
        return code, "".join(capsys.readouterr())

    code, text = train("data", 2)
    assert code == 0, text
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert evaluate("--split", "validation")[0] == 0
    shutil.move(tmp_path / "data", tmp_path / "moved")
    code, text = evaluate()
    assert code == 1 and "If it was moved, give --config.data.path=DIR" in text
    code, text = evaluate("--config.data.path=../moved/")
    assert code == 0 and "test: 4 examples" in text
    code, text = train("../moved/", 3)
    assert code == 0, text
    assert evaluate()[0] == 0
    write(tmp_path / "moved", "train", range(40, 44), answers=("maybe",))
    for code, text in (train("../moved", 4), evaluate()):
        assert code == 1 and "train: 4 rows added" in text
    code, text = evaluate("--config.data.changed=accept")
    assert code == 0 and "the data changed since the training: train: 4 rows added" in text
    code, text = train("../moved", 4, "--config.data.changed=accept")
    assert code == 0 and "4 examples have answers that this run does not know ('maybe')" in text
    assert evaluate()[0] == 0
    code, text = evaluate("--config.model.fusion.depth=2")
    assert code == 1 and "another config (model.fusion.depth" in text
