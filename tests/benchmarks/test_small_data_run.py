"""The benchmark's driver and tables, and a few steps of each of its peers."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.small_data import report, run
from benchmarks.small_data.make import make, write
from benchmarks.small_data.pictures import Scene, background
from mmflax.config.reading import load_config
from mmflax.metrics.retrieval import retrieval

TINY = {"train": 12, "validation": 4, "test": 4}


def captions(folder):
    """A folder for retrieval, with a word that only validation has."""
    rng = np.random.default_rng(0)
    for split, names in {"train": ["a left hand", "a red car", "a cat", "two"] * 2,
                         "validation": ["a cat", "dinosaur", "a red cat"]}.items():  # fmt: skip
        pictures = [Image.fromarray(background(rng, 32)) for _ in names]
        rows = [[dict(caption=name)] for name in names]
        write(folder / split, map(Scene, pictures, [{}] * len(rows), rows))


def evaluation(accuracy, **more):
    metrics = {"accuracy": accuracy, "accuracy/a": accuracy, "accuracy/b": 0.5}
    interval = [accuracy - 0.1, accuracy + 0.1]
    return {
        "examples": 50,
        "metrics": {"full": metrics},
        "intervals": {"accuracy": interval},
        **more,
    }


def test_tables_have_means_and_intervals(tmp_path):
    results = [
        ("mmflax", 0, evaluation(0.8, parameters=1000, steps=10, seconds=9.0)),
        ("peer", 0, evaluation(0.6, seconds=9.0)),
        ("question prior", 0, evaluation(0.3) | {"intervals": {}}),
        ("mmflax", 1, evaluation(0.9, parameters=1000, steps=30, seconds=11.0)),
        ("peer", 1, evaluation(0.6, seconds=11.0)),
    ]
    text = report.write(results, ["accuracy"], tmp_path / "toy", "validation", reference="mmflax")
    ours, peer, prior = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith(("| mmflax", "| peer", "| question"))
    ]
    # t of one degree of freedom: 12.706 * 0.05 = 0.635 to either side.
    assert ours[:8] == ["mmflax", "1,000", "20", "10", "85.0", "21.5 .. 148.5", "75.0 .. 95.0", "-"]
    assert peer[4:] == [
        "60.0",
        "60.0 .. 60.0",
        "50.0 .. 70.0",
        "-25.0 (-88.5 .. 38.5)",
        "60.0",
        "50.0",
    ]
    assert prior[1:7] == ["-", "-", "-", "30.0", "-", "-"]
    assert (tmp_path / "toy/validation.md").read_text() == text
    report.write(results[:1], ["accuracy"], tmp_path / "other", "validation", reference="mmflax")
    assert report.overview(tmp_path, "validation").splitlines()[2:] == [
        "| other | accuracy x 100 | 80.0 | - | - |",
        "| toy | accuracy x 100 | 85.0 +- 63.5 | 60.0 +- 0.0 | 30.0 |",
    ]
    stored = json.loads((tmp_path / "toy/validation.json").read_text())
    assert stored["metrics"]["accuracy"]["kinds"]["peer"]["difference"] == pytest.approx(-0.25)


@pytest.mark.parametrize("task", run.PEERS)
def test_ablations_are_keys_of_the_recipe(task, tmp_path):
    source = f"{run.CONFIG}:{task}:{tmp_path}"
    for name, variants in run.ABLATIONS.items():
        for words in variants.values() if run.OF_TASK.get(name, task) == task else ():
            load_config(source, [f"--config.{word}" for word in words])


class Commands:
    """Stands in for the command line: writes what `train` and `evaluate` leave behind."""

    def __init__(self):
        self.words = []

    def __call__(self, folder, *words):
        self.words.append(words)
        workdir = words[words.index("--workdir") + 1]
        if words[0] == "train":
            (workdir / "eval").mkdir(parents=True)
            (workdir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 7}\n')
            (folder / "log.txt").write_text("encoder   90\ntotal   1,234\n")
        else:
            content = json.dumps(evaluation(0.7) | {"step": 5, "seconds": 0.1})
            (workdir / "eval" / f"{words[-1]}.json").write_text(content)


def test_ours_are_trained_once_and_evaluated_on_each_split(tmp_path, monkeypatch):
    commands = Commands()
    monkeypatch.setattr(run, "command", commands)
    words = ["run", "--data", str(tmp_path), "--set", "counting", "--seeds", "2", "--peers", "",
             "--workdir", str(tmp_path / "runs"), "--ablate", "norm", "--seconds", "90",
             "--config-overrides", "optim.weight_decay=0"]  # fmt: skip
    make("counting", tmp_path / "counting", sizes=TINY)
    monkeypatch.setattr(run, "prior", lambda *_: evaluation(0.2) | {"intervals": {}})
    for final in ([], [], ["--final"]):
        monkeypatch.setattr(sys, "argv", words + final)
        run.main()
    trained = [words for words in commands.words if words[0] == "train"]
    assert len(trained) == 6 and len(commands.words) == 6 + 12
    assert [words[-1] for words in commands.words if words[0] == "evaluate"][::6] == [
        "validation",
        "test",
    ]
    assert trained[0][2] == f"{run.CONFIG}:vqa:{tmp_path / 'counting'}"
    given = ["recipe.minutes=1.5", "optim.weight_decay=0"]
    post = [f"model.{part}.norm_style=post" for part in ("text_encoder", "fusion")]
    for words, changes in ((trained[0], ["seed=0"]), (trained[5], [*post, "seed=1"])):
        assert list(words[5:]) == [f"--config.{change}" for change in given + changes]
    table = (tmp_path / "runs/counting/test.md").read_text()
    assert "| mmflax | 1,234 | 7 |" in table and "| norm=post |" in table


def test_an_unknown_ablation_lists_the_known(tmp_path, monkeypatch):
    make("counting", tmp_path / "counting", sizes=TINY)
    words = ["run", "--data", str(tmp_path), "--set", "counting", "--ablate", "stems"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="'stems' is not one of stem, norm"):
        run.main()


@pytest.mark.parity
def test_peers_answer(tmp_path):
    peers = pytest.importorskip("benchmarks.small_data.peers")
    make("counting", tmp_path / "counting", sizes=TINY)
    data = peers.read(tmp_path / "counting", "vqa", ("train", "validation"), side=32)
    for name in run.PEERS["vqa"]:
        results = [peers.train_peer(name, data, "validation", seed=s, steps=3) for s in (0, 0, 1)]
        first, again, other = [{**r, "seconds": 0} for r in results]
        assert first == again and first["steps"] == 3 and first["examples"] == 20
        assert 0 <= first["metrics"]["full"]["accuracy/all"] <= 1
        low, high = first["intervals"]["accuracy"]
        assert low <= first["metrics"]["full"]["accuracy"] <= high
    timed = peers.train_peer("words", data, "validation", seconds=0.3)
    assert timed["steps"] > 3 and 0.3 <= timed["seconds"] < 5


@pytest.mark.parity
def test_peers_retrieve(tmp_path):
    peers = pytest.importorskip("benchmarks.small_data.peers")
    torch = pytest.importorskip("torch")
    captions(tmp_path)
    data = peers.read(tmp_path, "retrieval", ("train", "validation"))
    split = data.splits["validation"]
    assert split.images.shape == (3, 3, 32, 32) and split.words[1] == []
    result = peers.train_peer("cnn_infonce", data, "validation", steps=3)
    assert result["examples"] == 3 and result["parameters"] > 1.5e6

    class Known:
        """Scores [2 images, 3 texts]; the first image has two texts."""

        scores = torch.tensor([[0.1, 0.6, 0.5], [0.2, 0.7, 0.4]])

        def of_images(self, images):
            return self.scores

        def of_texts(self, bags):
            return torch.eye(3)

    two = split._replace(
        images=split.images[:2], image=torch.tensor([0, 1, 0]), texts=["a", "b", "c"]
    )
    metrics, intervals = peers._retrieval(Known(), two, len(data.words))
    assert metrics == retrieval(Known.scores.numpy(), [0, 1], [0, 1, 0])
    assert metrics["i2t/recall@1"] == 0.5
    # The first image's nearest text is now one of its own, too.
    equal, _ = peers._retrieval(Known(), two._replace(texts=["a", "B", "b"]), len(data.words))
    assert equal["i2t/recall@1"] == 1.0
    assert set(intervals) == set(run.METRICS["retrieval"])


@pytest.mark.parity
def test_only_what_may_be_mirrored_is(tmp_path):
    peers = pytest.importorskip("benchmarks.small_data.peers")
    torch = pytest.importorskip("torch")
    images = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    images[..., :16] = 255
    mirror = torch.arange(64) < 32
    moved = peers.moved(images, mirror, torch.Generator().manual_seed(0))
    left = moved[..., :4].mean((1, 2, 3)) > moved[..., -4:].mean((1, 2, 3))
    assert left[32:].all() and 8 < left[:32].sum() < 24
