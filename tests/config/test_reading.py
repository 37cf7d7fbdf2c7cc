import pathlib
import shutil

import pytest

from mmflax.config import reading
from mmflax.config.compare import check_same_run, differences
from mmflax.config.reading import load_config, shipped
from mmflax.errors import MmflaxError

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))

FILE = """
from ml_collections import ConfigDict
def get_config(arg=None):
  c = ConfigDict()
  c.optim = dict(peak=1e-3, steps=5, rules=(("a", 2.0),))
  c.path = arg or ""
  return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.py"
    path.write_text(FILE)
    return str(path)


def test_argument_and_overrides(file):
    config = load_config(f"{file}:some/dir", ["--config.optim.peak=0.5", "--config.optim.steps=7"])
    assert config["path"] == "some/dir"
    assert config["optim"] == {"peak": 0.5, "steps": 7, "rules": (("a", 2.0),)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.optim.peek=1", "did you mean 'peak'"),
        ("--config.optm.peak=1", "did you mean 'optim'"),
        ("--config.optim.steps=many", "many"),
        ("--config.optim.peak", "has no value"),
    ],
)
def test_bad_overrides_are_one_sentence(file, override, message):
    with pytest.raises(MmflaxError, match=message):
        load_config(file, [override])


def test_a_missing_file_suggests_a_shipped_one():
    with pytest.raises(MmflaxError, match="did you mean 'shapes_vqa.py'"):
        load_config("configs/shape_vqa.py")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"mmflax/configs": None, "configs": None}, "mmflax/configs"),
        ({"configs": None}, None),
        ({"configs": None, "pyproject.toml": '[project]\nname = "other"'}, None),
        ({"configs": None, "pyproject.toml": "not toml ["}, None),
        ({"configs": None, "pyproject.toml": '[project]\nname = "mmflax"'}, "configs"),
    ],
)
def test_only_our_own_configs_are_executed(files, expected, tmp_path):
    """Beside an installed package, `configs` is somebody else's."""
    (tmp_path / "mmflax").mkdir()
    for name, text in files.items():
        (tmp_path / name).mkdir() if text is None else (tmp_path / name).write_text(text)
    found = shipped(tmp_path / "mmflax")
    assert found == (tmp_path / expected if expected else None)


def test_an_installed_package_finds_its_own_configs(tmp_path, monkeypatch):
    root = pathlib.Path(reading.__file__).parents[2]
    site = tmp_path / "site-packages"
    shutil.copytree(root / "configs", site / "mmflax" / "configs")
    (site / "configs").mkdir()
    for folder in (site / "configs", site / "mmflax" / "configs"):
        (folder / "stranger.py").write_text("raise SystemExit('executed')")
    (site / "mmflax" / "configs" / "stranger.py").unlink()
    monkeypatch.setattr(reading, "__file__", str(site / "mmflax" / "config" / "reading.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/shapes_vqa.py")["data"]["name"] == "shapes"
    with pytest.raises(MmflaxError, match="no config file"):
        load_config("configs/stranger.py")


def test_an_error_in_the_file_is_named(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def get_config(arg=None):\n  return 1 / 0\n")
    with pytest.raises(MmflaxError, match="ZeroDivisionError"):
        load_config(str(path))
    path.write_text("def get_config(arg=None):\n  return {}\n")
    with pytest.raises(MmflaxError, match="expected a ConfigDict"):
        load_config(str(path))


def test_differences_ignore_tuples_and_lists():
    old, new = {"a": {"b": (1, 2)}, "c": 1}, {"a": {"b": [1, 2]}, "d": 2}
    assert differences(old, new) == ["c: 1 -> (absent)", "d: (absent) -> 2"]


def test_only_what_changes_no_learning_may_change():
    old = {"train": {"steps": 5, "log_every": 1}, "mesh": {"data": 1}, "model": {"width": 8}}
    check_same_run(old, {**old, "mesh": {"data": 2}, "train": {"steps": 9, "log_every": 2}}, "w")
    with pytest.raises(MmflaxError, match="model.width: 8 -> 16"):
        check_same_run(old, {**old, "model": {"width": 16}}, "w")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_says_what_it_is(path):
    config = load_config(str(path))
    assert {"model", "task", "data", "optim", "train"} <= config.keys()
    head = path.read_text().split('"""')[1]
    assert "Command:" in head and "Hardware:" in head and "Expected score:" in head


def test_tasks_that_start_from_the_demo_have_its_model():
    folder = CONFIGS[0].parent
    demo = load_config(str(folder / "shapes_vqa.py"))["model"]
    for task in ("matching", "entailment", "nlvr", "nlvr2"):
        assert load_config(f"{folder / 'shapes.py'}:{task}")["model"] == demo
