"""The README's commands: each is one that exists, and the everyday ones run as they are printed."""

import ast
import importlib
import json
import os
import pathlib
import re
import shlex
import shutil
import sys

import pytest
from PIL import Image

from mmflax import cli
from mmflax.config.reading import load_config
from tests.run.small_sources import small
from tests.test_packaging import targets

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# Not ours to run.
ELSEWHERE = {"git", "cd", "pip"}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command line of the README as a list of words."""
    for block in blocks("bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words: list[str] = []
            for word in shlex.split(line, comments=True):
                if word == "&&":
                    yield words
                    words = []
                else:
                    words.append(word)
            if words:
                yield words


def ours():
    """The arguments of every `mmflax` command."""
    for words in commands():
        if words[0].startswith("launch/"):
            words = words[words.index("--") + 1 :]
        if words[0] == "mmflax":
            yield words[1:]


def fusion_kinds():
    files = (ROOT / "mmflax" / "models" / "fusion").glob("*.py")
    return {path.stem for path in files if "\ndef build(" in path.read_text()}


def test_every_command_is_one_that_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets()
        elif words[0] not in ELSEWHERE | {"mmflax"}:
            assert os.access(words[0], os.X_OK), words
    for words in ours():
        options, overrides = cli._parser().parse_known_args(words)
        assert all(word.startswith("--config.") for word in overrides), words
        if getattr(options, "config", None):
            load_config(options.config, overrides)


def test_every_task_of_the_table_has_a_config(monkeypatch):
    monkeypatch.chdir(ROOT)
    table = README.partition("## Every task")[2].partition("\n\nA label of")[0]
    tasks = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(tasks) == 10
    for task in tasks:
        assert load_config(f"configs/shapes.py:{task}")["data"]["name"] == "shapes"


def test_the_kinds_of_fusion_that_it_lists_are_all_and_are_counted():
    text = README.partition("--config.model.fusion.name=`")[2].partition(". What it buys")[0]
    listed = re.findall(r"[a-z_]+", re.sub(r"\([^)]*\)", "", text).replace(" or ", ", "))
    assert sorted(listed) == sorted(fusion_kinds())
    numbers = "eleven twelve thirteen fourteen fifteen sixteen".split()
    assert f"| fusion | {numbers[len(listed) - 11]} kinds" in README


def test_every_link_leads_to_a_file():
    for name in ("README.md", "CONTRIBUTING.md", *(p.name for p in (ROOT / "docs").glob("*.md"))):
        path = ROOT / name if (ROOT / name).exists() else ROOT / "docs" / name
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", path.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (path.parent / target).exists(), f"{name}: {target}"


def test_the_notebook_imports_what_exists():
    """The whole notebook runs under make test-all."""
    cells = json.loads((ROOT / "colab" / "quickstart.ipynb").read_text())["cells"]
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    tree = ast.parse(re.sub(r"^\s*%.*", "    pass", code, flags=re.MULTILINE))
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmflax"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.name] = getattr(module, alias.name)
    assert len(names) > 3
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = names.get(node.value.id)
            assert module is None or hasattr(module, node.attr), ast.unparse(node)


# Appended to `train`: a few steps on a few scenes.
STEPS = ["--config.train.steps=2", "--config.optim.schedule.warmup_steps=1"]
SHORT = [*STEPS, "--config.data.num_scenes=60"]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A working directory with the repository's folders and the README's files."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "colab", "launch"):
        (root / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "colab" / "scene.png", root / "photo.jpg")
    rows = [
        {"file_name": f"{i}.png", "question": "what animal is it?", "answer": answer,
         "caption": f"a {answer}"}
        for i, answer in enumerate(["cat", "dog"] * 20)
    ]  # fmt: skip
    for name in ("my_data", "my_photos"):
        for part, split in enumerate(("train", "test")):
            (root / name / split).mkdir(parents=True)
            for i, row in enumerate(rows):  # no image twice: it would be in two splits
                image = Image.new("RGB", (64, 64), (i, part, 99))
                image.save(root / name / split / row["file_name"])
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (root / name / split / "metadata.jsonl").write_text(lines)
    return root


def run(words, capfd):
    assert cli.main(words) == 0, capfd.readouterr().err
    return capfd.readouterr().out


@pytest.mark.slow
def test_train_evaluate_and_predict_as_printed(checkout, monkeypatch, capfd):
    monkeypatch.chdir(checkout)
    words = [words for words in ours() if "runs/shapes" in words]
    assert [line[0] for line in words] == ["train", "evaluate", "predict"]
    for line in words:
        output = run([*line, *(SHORT if line[0] == "train" else [])], capfd)
        assert output.strip()
    assert (checkout / "attention.png").exists()
    (code,) = (block for block in blocks("python") if "mmflax.load(" in block)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.slow
def test_adapters_of_a_run_as_printed(checkout, monkeypatch, capfd):
    monkeypatch.chdir(checkout)
    for workdir in ("runs/shapes", "runs/adapted"):
        (line,) = (words for words in ours() if words[0] == "train" and workdir in words)
        output = run([*line, *SHORT], capfd)
    assert "LoRA of rank 8, scale 1" in output and "done at step 2" in output
    assert run(["evaluate", "--workdir", "runs/adapted"], capfd).strip()


@pytest.mark.slow
def test_tasks_that_start_from_the_demo_as_printed(checkout, monkeypatch, capfd):
    """By the one line; sentences of entailment are longer than the demo's questions."""
    monkeypatch.chdir(checkout)
    if not (checkout / "runs" / "shapes").exists():
        (line,) = (words for words in ours() if words[0] == "train" and "runs/shapes" in words)
        run([*line, *SHORT], capfd)
    (line,) = (words for words in ours() if words[0] == "train" and "runs/nlvr" in words)
    for task in ("nlvr", "entailment"):
        short = [*STEPS, "--config.data.num_scenes=200", "--config.train.eval_every=2"]
        output = run([*(word.replace("nlvr", task) for word in line), *short], capfd)
        assert "started from" in output and "done at step 2" in output


@pytest.mark.slow
def test_another_kind_of_fusion_by_the_one_switch(checkout, monkeypatch, capfd):
    monkeypatch.chdir(checkout)
    assert "One switch: `--config.model.fusion.name=` concat," in README
    line = next(words for words in ours() if words[0] == "train" and "runs/shapes" in words)
    line = [word.replace("runs/shapes", "runs/concat") for word in line]
    assert cli.main([*line, "--config.model.fusion.name=concat", *SHORT]) == 0
    output, errors = capfd.readouterr()
    assert "model.fusion.name=concat does not take model.fusion.form" in errors
    assert "done at step 2" in output
    config = json.loads((checkout / "runs" / "concat" / "config.json").read_text())
    assert config["model"]["fusion"]["name"] == "concat"


@pytest.mark.slow
def test_a_folder_of_pictures_as_printed(checkout, monkeypatch, capfd):
    monkeypatch.chdir(checkout)
    words = [
        words for words in ours() if any("folder.py:" in word and "my_" in word for word in words)
    ]
    assert [line[0] for line in words] == ["data", "train", "train"]
    for line in words:
        short = [*STEPS, "--config.data.batch_size=8"]
        run([*line, *(short if line[0] == "train" else [])], capfd)
    assert (checkout / "data.png").exists()


@pytest.mark.slow
def test_a_public_checkpoint_as_printed(checkout, monkeypatch, capfd):
    """Small and random, in the real layout of CLIP."""
    monkeypatch.chdir(checkout)
    source = small("clip", checkout)
    (words,) = (words for words in ours() if any("finetune.py" in word for word in words))
    words = [word.replace("path/to/checkpoint", source) for word in words]
    short = ["--config.train.steps=2", "--config.data.batch_size=8"]
    out = run([*words, *short], capfd)
    assert "fusion: co_attention 1x20 (new)" in out and "done at step 2" in out


@pytest.mark.slow
def test_two_processes_as_printed(checkout, monkeypatch, capfd):
    import subprocess

    (line,) = (words for words in commands() if words[0] == "launch/local_processes")
    program = line.index("mmflax")
    line = [*line[:program], sys.executable, "-m", "mmflax.cli", *line[program + 1 :], *SHORT]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MMFLAX_", "JAX_"))}
    done = subprocess.run(
        line,
        cwd=checkout,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
