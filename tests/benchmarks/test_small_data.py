"""The benchmark's data sets: folders that are read, answers worked out again, splits kept apart."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.small_data import digits, drawings
from benchmarks.small_data.make import SETS, make
from mmflax.data.datasets.folder import dataset

TINY = {"train": 12, "validation": 4, "test": 4}
QUESTIONS = [name for name in SETS if name != "drawings"]
NAMES = [f"thing {i}" for i in range(60)]


@pytest.fixture(autouse=True)
def samples(monkeypatch):
    """Random handwriting and drawings, so that nothing has to be installed."""
    labels = np.arange(200) % 10
    pictures = np.random.default_rng(0).integers(0, 17, size=(200, 8, 8))
    monkeypatch.setattr(digits, "samples", lambda: (pictures, labels))
    monkeypatch.setattr(drawings, "picture", painted)
    digits.handwriting.cache_clear()
    yield
    digits.handwriting.cache_clear()


def painted(svg):
    code = int(re.search(r"M(\d+)", svg)[1])
    return Image.new("RGB", (64, 64), (code // 256, code % 256, 0))


@pytest.fixture
def packages(tmp_path):
    """Three packages as npm unpacks them, of drawings with a number in each."""
    modules = tmp_path / "packages" / "node_modules"
    rows = [
        dict(hexcode=f"1F{i:03X}-FE0F", annotation=name, group="objects", skintone="")
        for i, name in enumerate(NAMES)
    ]
    rows += [
        dict(hexcode="1FA00", annotation="a flag", group="flags", skintone=""),
        dict(hexcode="1FA01", annotation="light", group="people-body", skintone="1"),
        dict(hexcode="1FA02", annotation="own", group="extras-openmoji", skintone=""),
    ]
    write(modules / "openmoji/data/openmoji.json", rows)
    for artist_number, artist in enumerate(drawings.ARTISTS):
        codes = [row["hexcode"].replace("-FE0F", "").lower() for row in rows]
        icons = {
            f"i{i}": dict(body=f'<path d="M{1000 * artist_number + i}"/>')
            for i in range(len(codes))
        }
        icons["own"] = icons.pop("i3")
        aliases = {"i3": {"parent": "own"}}
        folder = modules / "@iconify-json" / artist
        write(folder / "icons.json", dict(icons=icons, aliases=aliases, width=32, height=32))
        write(folder / "chars.json", {code: f"i{i}" for i, code in enumerate(codes)})
    return tmp_path / "packages"


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def made(name, tmp_path, packages, sizes=TINY, **options):
    if name == "drawings":
        options, sizes = dict(packages=packages, **options), None
    return make(name, tmp_path / "data", sizes=sizes, **options)


@pytest.mark.parametrize("name", SETS)
def test_the_folder_is_read(name, tmp_path, packages):
    splits = made(name, tmp_path, packages)
    task = "retrieval" if name == "drawings" else "vqa"
    data = dataset.build(
        path=tmp_path / "data", task=task, unseen_answers="wrong", allow_leak=False
    )
    for split, scenes in splits.items():
        rows = [row for scene in scenes for row in scene.rows]
        assert len(data.source(split)) == len(rows) > 0
        texts = [data.source(split)[i]["question"] for i in range(len(rows))]
        assert texts == [row.get("caption") or row["question"] for row in rows]
        assert len(list((tmp_path / "data" / split / "images").iterdir())) == len(scenes)
        for scene in scenes:
            asked = [row.get("question") for row in scene.rows]
            assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("name", SETS)
def test_the_same_seed_gives_the_same_folder(name, tmp_path, packages):
    contents = []
    for run, seed in enumerate((3, 3, 4)):
        made(name, tmp_path / str(run), packages, seed=seed)
        root = tmp_path / str(run) / "data"
        contents.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*.*")})
    assert contents[0] == contents[1] != contents[2]


def one_shape(question, record):
    named = set(re.findall(r"\w+", question))
    if named & {"which", "what", "how", "small"}:
        if named & {"size", "small", "how"}:
            return record["size"]
        return record["color" if "color" in named else "shape"]
    x, y = record["center"]
    true = {record["color"], record["shape"], "left" if x < 32 else "right"}
    true |= {"top" if y < 32 else "bottom"}
    words = "red green blue yellow purple orange circle square triangle left right top bottom"
    return "yes" if named & set(words.split()) <= true else "no"


def sort_of_clevr(question, record):
    color = re.search(".*(red|green|blue|orange|gray|yellow) object", question)[1]
    shape, x, y = record["objects"][color]
    if "how many" in question:
        return str([other[0] for other in record["objects"].values()].count(shape))
    if "is the" in question and question.startswith("is"):
        return "yes" if (x if "left" in question else y) <= 37 else "no"
    if "closest" in question or "furthest" in question:
        ranked = sorted(
            ((a - x) ** 2 + (b - y) ** 2, kind)
            for name, (kind, a, b) in record["objects"].items()
            if name != color
        )
        return ranked[0 if "closest" in question else -1][1]
    return shape


def of_digits(question, record):
    shown = record["digits"]
    words = dict(zip(digits.WORDS, range(10), strict=True)) | dict(
        zip(digits.PLURALS, range(10), strict=True)
    )
    named = [words[word] for word in re.findall(r"\w+", question) if word in words]
    if "sum" in question:
        return str(shown[0] + shown[-1])
    if "largest" in question:
        return str(sorted(shown)[-1])
    if "how many" in question:
        return str(sum(digit == named[0] for digit in shown))
    if "is there" in question:
        return "yes" if set(named) <= set(shown) else "no"
    pairs = zip(shown, shown[1:], strict=False)
    if "left of" in question:
        (found,) = {str(a) for a, b in pairs if b == named[0]}
    else:
        (found,) = {str(b) for a, b in pairs if a == named[0]}
    return found


def rendered_text(question, record):
    text = record["text"]
    if "the letter " in question:
        return "yes" if question.split("the letter ")[1][0] in text else "no"
    if "how many" in question:
        return str(len(text))
    if "first" in question or "begin" in question:
        return text[:1]
    return text[-1:] if "last" in question or "end" in question else text


def fine_colors(question, record):
    left, right = (np.array(record["colors"][side], float) for side in ("left", "right"))
    if "same" in question:
        return "yes" if (left == right).all() else "no"
    if "lighter" in question or "darker" in question:
        gap = left.mean() - right.mean()
    else:
        place = ["red", "green", "blue"].index(re.search("red|green|blue", question)[0])
        gap = 1.5 * ((left - left.mean()) - (right - right.mean()))[place]
    assert abs(gap) > 7.99
    winner = "left" if (gap > 0) != ("less" in question or "darker" in question) else "right"
    if question.startswith("which"):
        return winner
    return "yes" if f"the {winner} one" in question else "no"


def counting(question, record):
    named = re.findall("circle|square|triangle|red|green|blue|yellow|purple|orange", question)
    counts = [sum(word in thing for thing in record["things"]) for word in named]
    if "more" in question:
        return "yes" if counts[0] > counts[1] else "no"
    return str(counts[0] if named else len(record["things"]))


ANSWERS = dict(
    one_shape=one_shape,
    sort_of_clevr=sort_of_clevr,
    digits=of_digits,
    rendered_text=rendered_text,
    fine_colors=fine_colors,
    counting=counting,
)


@pytest.mark.parametrize("name", QUESTIONS)
def test_answers_are_right(name, tmp_path, packages):
    splits = made(name, tmp_path, packages, dict(train=60))
    for scene in splits["train"]:
        for row in scene.rows:
            assert row["answer"] == ANSWERS[name](row["question"], scene.record), row
            assert row["question_type"]


def image(tmp_path, index):
    return np.asarray(Image.open(tmp_path / f"data/train/images/{index:05d}.png"))


def test_fine_colors_are_in_the_picture(tmp_path, packages):
    splits = made("fine_colors", tmp_path, packages)
    for index, scene in enumerate(splits["train"]):
        pixels = image(tmp_path, index)
        for side, half in (("left", pixels[:, :32]), ("right", pixels[:, 32:])):
            assert (half == scene.record["colors"][side]).all(-1).sum() > 60


def test_one_shape_is_where_its_record_says(tmp_path, packages):
    splits = made("one_shape", tmp_path, packages)
    for index, scene in enumerate(splits["train"]):
        x, y = (round(v) for v in scene.record["center"])
        spot = image(tmp_path, index)[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3)
        assert (spot == spot[0]).all()


def test_what_is_counted_can_be_seen(tmp_path, packages):
    splits = made("counting", tmp_path, packages, dict(train=40))
    y, x = np.mgrid[:64, :64] + 0.5
    for scene in splits["train"]:
        owner = np.full((64, 64), -1)
        areas = []
        for number, (shape, a, b, radius) in enumerate(scene.record["placed"]):
            u, v = (x - a) / radius, (y - b) / radius
            inside = {
                "circle": u**2 + v**2 <= 0.92**2,
                "square": np.maximum(abs(u), abs(v)) <= 0.82,
                "triangle": (v <= 0.8) & (abs(u) <= 0.95 * (v + 0.95) / 1.75),
            }[shape]
            owner[inside] = number
            areas.append(inside.sum())
        for number, area in enumerate(areas):
            assert (owner == number).sum() > 0.42 * area  # 0.5 of the pixels drawn


def test_handwriting_is_of_one_split(tmp_path, packages):
    splits = made("digits", tmp_path, packages, dict(train=60, validation=60, test=60))
    pictures, labels, _ = digits.handwriting()
    used = {}
    for split, scenes in splits.items():
        used[split] = {int(sample) for scene in scenes for sample in scene.record["samples"]}
        for scene in scenes:
            assert [labels[sample] for sample in scene.record["samples"]] == scene.record["digits"]
    assert not used["train"] & used["validation"] and not used["test"] & used["validation"]
    assert not used["train"] & used["test"]


@pytest.mark.parametrize("test", drawings.ARTISTS)
def test_drawings_are_tested_on_another_hand(test, tmp_path, packages):
    splits = made("drawings", tmp_path, packages, test=test)
    of = {s: {(x.record["name"], x.record["artist"]) for x in xs} for s, xs in splits.items()}
    assert of["test"] == {(name, test) for name in NAMES}
    others = [artist for artist in drawings.ARTISTS if artist != test]
    assert of["train"] | of["validation"] == {(n, a) for n in NAMES for a in others}
    assert not of["train"] & of["validation"] and len(of["validation"]) >= 2
    assert {name for name, _ in of["train"]} == set(NAMES)


def test_libraries_give_handwriting_and_drawings(monkeypatch):
    pytest.importorskip("sklearn")
    pytest.importorskip("resvg_py")
    monkeypatch.undo()
    pictures, labels, splits = digits.handwriting()
    assert pictures.shape == (1797, 8, 8) and pictures.max() == 1 and set(labels) == set(range(10))
    assert all((splits == split).sum() > 170 for split in TINY)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 2 1">{}</svg>'
    pixels = np.asarray(drawings.picture(svg.format('<path fill="red" d="M0 0h1v1H0"/>')))
    assert pixels.shape == (64, 64, 3)
    assert (pixels[32, 16] == (255, 0, 0)).all() and (pixels[[32, 4], [48, 16]] == 255).all()
