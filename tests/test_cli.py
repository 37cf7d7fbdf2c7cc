"""The command line as a user meets it: exit codes, sentences, files."""

import json
import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from mmflax import cli
from tests import tiny

CONFIG = """
import json
import pathlib
from ml_collections import ConfigDict
def get_config(arg=None):
  return ConfigDict(json.loads({text!r}))
"""


@pytest.fixture
def config_file(tmp_path, shapes_dir):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(text=json.dumps(tiny.config(shapes_dir))))
    return str(path)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.full((50, 70, 3), 90, np.uint8)).save(path)
    return str(path)


def call(capsys, *words):
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "predict", "ablate", "data", "config", "plan"]
)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([command, "--help"])
    assert exit.value.code == 0
    assert f"mmflax {command} --" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["trian"],
        ["train"],
        ["predict", "--workdir", "w", "--config.seed=1"],
        ["predict", "--workdir", "w", "--img", "x", "--text", "y"],
    ],
)
def test_usage_errors_exit_2(words, capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(words)
    assert exit.value.code == 2
    assert "usage:" in capsys.readouterr().err


def width(path):
    with Image.open(path) as image:
        return image.size[0]


def test_predict_answers_and_draws(trained, picture, tmp_path, capsys):
    out = tmp_path / "look.png"
    code, text, err = call(
        capsys, "predict", "--workdir", trained[0], "--image", picture, "--text",
        "how many circles are there?", "--attention", out, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    answer = json.loads(text)
    assert answer["top"][0] == [answer["answer"], answer["probability"]]
    assert width(out) > 400


def test_evaluate_prints_a_table_or_json(trained, capsys):
    code, text, _ = call(capsys, "evaluate", "--workdir", trained[0])
    assert code == 0
    assert "text only" in text and "relation" in text
    code, text, _ = call(capsys, "evaluate", "--workdir", trained[0], "--json")
    assert json.loads(text)["metrics"]["full"].keys() >= {"accuracy", "loss"}


def test_data_draws_what_the_model_sees(config_file, tmp_path, capsys):
    out = tmp_path / "batch.png"
    code, text, _ = call(capsys, "data", "--config", config_file, "--out", out, "--rows", 1)
    assert code == 0 and "answers" in text
    assert width(out) > 600


def test_config_prints_every_value_and_its_source(config_file, capsys):
    words = ["config", "--config", config_file, "--config.evaluation.max_examples=9"]
    code, text, err = call(capsys, *words, "--config.train.epochs", 2)
    assert (code, err) == (0, "")
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()}
    assert rows["evaluation.max_examples"] == ["9", "command", "line"]
    assert rows["train.epochs"] == ["2", "command", "line"] and rows["train.steps"][-1] == "default"
    assert rows["train.log_every"] == ["2", "file"] and rows["seed"] == ["3", "file"]
    assert rows["model.fusion.norm_style"][-1] == "default"
    assert rows["evaluation.batch_size"] == ["16", "file"]
    code, text, _ = call(capsys, *words, "--json")
    found = json.loads(text)
    assert found["config"]["evaluation"]["max_examples"] == 9
    assert found["sources"]["optim.weight_decay"] == "file"
    assert found["sources"]["checkpoint.best_mode"] == "default"
    code, _, err = call(capsys, *words, "--config.optim.schedule.warmup_steps=-1")
    assert code == 1 and err.count("\n") == 1 and "warmup_steps is -1" in err


def test_train_prints_progress_and_finishes(config_file, tmp_path, capsys):
    code, text, err = call(
        capsys, "train", "--config", config_file, "--workdir", tmp_path / "w",
        "--config.train.steps=3", "--config.train.log_every=1",
    )  # fmt: skip
    assert code == 0, err
    assert "total" in text and "done at step 3" in text
    assert "compiled the train step in" in err and "loss" in err
    assert re.search(r"validation accuracy \d+\.\d %  \(.+ \d+\.\d %, text only \d+\.\d %\)", err)
    assert "worst question types of validation:\n" in text and "the best by validation/acc" in text
    assert width(tmp_path / "w" / "eval" / "mistakes.png") > 600
    file = tmp_path / "w" / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["step"] for line in lines} == {1, 2, 3}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--config", "none.py", "--workdir", "w"], "no config file"),
        (["evaluate", "--workdir", "nowhere"], "no config.json"),
        (["predict", "--workdir", "nowhere", "--image", "x", "--text", "y"], "no config.json"),
        (["data", "--config", "{config}", "--config.optm.peak=1"], "did you mean 'optim'"),
        (["data", "--config", "{config}", "--split", "dev"], "no split 'dev'"),
        (["data", "--config", "{config}", "--out", "x.doc"], "must end in one of"),
        (["data", "--config", "{config}", "--out", "nowhere/x.png"], "no folder"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_1(
    words, message, config_file, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *(word.replace("{config}", config_file) for word in words))
    assert code == 1
    assert message in err
    assert err.startswith("mmflax: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("image", "text", "message"),
    [
        ("absent.png", "is it red?", "absent.png"),
        ("broken.png", "is it red?", "broken.png"),
        ("{picture}", "  ", "empty"),
    ],
)
def test_bad_questions_are_one_sentence(
    trained, image, text, message, picture, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.png").write_bytes(pathlib.Path(picture).read_bytes()[:60])
    code, _, err = call(
        capsys, "predict", "--workdir", trained[0], "--image", image.replace("{picture}", picture),
        "--text", text,
    )  # fmt: skip
    assert code == 1
    assert message in err and err.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    from mmflax.errors import MmflaxError

    with pytest.raises(MmflaxError):
        cli.main(["evaluate", "--workdir", "nowhere", "--debug"])


def test_a_workdir_that_cannot_be_written(config_file, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    code, _, err = call(
        capsys, "train", "--config", config_file, "--workdir", tmp_path / "file" / "w"
    )
    assert code == 1
    assert err.count("\n") == 1 and "file" in err


def test_a_picture_of_a_plan_that_cannot_be_written_is_told_before_it_compiles(tmp_path, capsys):
    words = ["plan", "--config", "configs/public.py:vqa_v2", f"--figure={tmp_path / 'plan.xyz'}"]
    assert cli.main(words) == 1
    assert "must end in one of" in capsys.readouterr().err
