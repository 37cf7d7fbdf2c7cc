"""`max_bad_fraction` holds wherever examples are read: also in what `mmflax data` shows."""

import pytest

from mmflax.cli import main
from mmflax.config.compare import check_same_run
from mmflax.config.reading import load_config
from mmflax.errors import MmflaxError
from mmflax.evaluation.tables import left_out
from mmflax.run.examples import first_batch
from tests.test_batch_path import ROOT, write_folder


@pytest.fixture
def config(tmp_path):
    write_folder(tmp_path)
    for split in ("train", "test"):
        for number in (0, 3):
            (tmp_path / split / f"{number}.png").write_bytes(b"")
    fields = ["--config.data.max_bad_fraction=0.2", "--config.data.validation_fraction=0.0"]
    fields.append("--config.train.steps=1")
    return [f"{ROOT.parent}/configs/folder.py:vqa:{tmp_path}", *fields]


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_is_shown_passes_over_them(config, split):
    shown = first_batch(load_config(config[0], config[1:]), split, 17)
    assert len(shown.batch["id"]) == 17
    assert set(shown.bad) <= {f"{split}/metadata.jsonl:{line}" for line in (1, 4)}
    assert shown.bad and not set(shown.bad) & set(shown.batch["id"])
    config[1] = "--config.data.max_bad_fraction=0.05"
    with pytest.raises(MmflaxError, match="2 of the 20 examples .*max_bad_fraction = 0.05"):
        first_batch(load_config(config[0], config[1:]), split, 20)


def test_the_command_names_them(config, tmp_path, capsys):
    out = tmp_path / "batch.png"
    arguments = ["data", "--config", config[0], *config[1:], "--split", "test", "--out", str(out)]
    assert main(arguments) in (0, None)
    printed = capsys.readouterr().out.splitlines()[-1]
    assert printed.startswith("left out, since the image cannot be read: 2 (test/metadata.jsonl:1")


def test_a_run_goes_on_with_more_of_them_tolerated(config):
    """What the message of too many advises."""
    few = [*config[1:], "--config.data.max_bad_fraction=0.05"]
    with pytest.raises(MmflaxError, match="2 of the 20 examples") as caught:
        first_batch(load_config(config[0], few), "test", 20)
    word = str(caught.value).rsplit(" ", 1)[1].rstrip(".")
    assert word == "--config.data.max_bad_fraction=0.2"
    first_batch(load_config(config[0], [*few, word]), "test", 18)
    old, new = (load_config(config[0], words) for words in (few, [*few, word]))
    check_same_run(old, new, "runs/mine")


def test_only_the_first_are_named():
    assert left_out({}) == []
    (line,) = left_out({f"e{i}": "is cut." for i in range(5)})
    assert line.endswith(": 5 (e0: is cut; e1: is cut; e2: is cut; …)")
