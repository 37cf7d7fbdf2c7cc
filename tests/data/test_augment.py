"""Changed pictures keep their words true, and every draw comes from the example's generator."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmflax.data import augment, pipeline
from mmflax.data.dataset import in_memory
from mmflax.data.datasets.shapes import scenes as shapes_scenes
from mmflax.data.datasets.shapes import tasks as shapes_tasks
from mmflax.data.datasets.shapes import things as shapes_things
from mmflax.data.image import augment as augment_images
from mmflax.data.processor import Processor
from mmflax.data.text import augment as augment_words
from mmflax.errors import MmflaxError
from tests.data import test_shapes_scenes, test_shapes_tasks

EVERYTHING = dict(
    crop_scale=(0.3, 1.0),
    flip="swap",
    randaugment_ops=2,
    randaugment_magnitude=9,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    hue=0.2,
    erase_rate=0.5,
    mask_rate=0.3,
)


def draws(seed):
    return np.random.Generator(np.random.PCG64(seed))


def noise(size=24, seed=0):
    return draws(seed).integers(0, 256, (size, size, 3), np.uint8)


def example(question="is it big?", **more):
    return {"image": noise(), "question": question, "answer": "yes", "id": "a", **more}


def scene_of(things, size=48):
    return shapes_things.render(things, draws(0), size)


def mirrored(things):
    return tuple(thing._replace(x=1 - thing.x) for thing in things)


def parts(caption):
    return sorted(re.split(", | and ", caption))


def pixels(image):
    return np.asarray(image)


# Meaning ------------------------------------------------------------------------------------------


def test_swapped_questions_keep_their_answers():
    """The mirrored scene, asked the mirrored question, has the mirrored answer."""
    swap = augment.build(flip="swap", flip_rate=1.0)
    changed = 0
    for scene in shapes_scenes.generate("train", 150, 0, 24):
        for question, answer, kind in scene.questions:
            raw = {"image": scene.image, "question": question, "answer": answer,
                   "caption": scene.caption, "answers": [answer] * 3}  # fmt: skip
            augmented = swap(raw, draws(0))
            np.testing.assert_array_equal(pixels(augmented["image"]), scene.image[:, ::-1])
            things = mirrored(scene.things)
            assert (
                test_shapes_scenes.solve(augmented["question"], kind, things) == augmented["answer"]
            )
            assert augmented["answers"] == [augmented["answer"]] * 3
            assert parts(augmented["caption"]) == parts(shapes_things.caption(things))
            changed += augmented["question"] != question
    assert changed > 20


@pytest.mark.parametrize("task", ["nlvr2", "entailment", "matching", "nlvr"])
def test_swapped_statements_keep_their_labels(task):
    swap = augment.build(flip="swap", flip_rate=1.0)
    scenes = list(shapes_scenes.generate("train", 60, 0, 16))
    things = [scene.things for scene in scenes]
    sided = 0
    for made in shapes_tasks.examples(task, "train", 0, things):
        raw = {**made.fields, "image": scenes[made.scene].image}
        if made.second is not None:
            raw["second_image"] = scenes[made.second].image
        augmented = swap(raw, draws(0))
        named = "left" in made.fields["question"] or "right" in made.fields["question"]
        sided += named
        # Which scene each picture now shows, found by its pixels.
        shown = [made.scene, made.second]
        if task == "nlvr2" and named:
            shown.reverse()
        for key, scene in zip(("image", "second_image"), shown, strict=True):
            if scene is not None:
                np.testing.assert_array_equal(pixels(augmented[key]), scenes[scene].image[:, ::-1])
        again = shapes_tasks.Example(0, {"question": augmented["question"]}, 1)
        views = [mirrored(things[scene]) for scene in shown if scene is not None]
        assert test_shapes_tasks.solve(task, again, views) == augmented["answer"] == raw["answer"]
    assert sided > (0 if task == "nlvr2" else 5)


def test_safe_flips_leave_out_what_names_a_side():
    safe = augment.build(flip="safe", flip_rate=1.0)
    for texts, flips in (
        ({"question": "is there a dog?"}, True),
        ({"question": None, "target": "a dog"}, True),
        ({"question": "Is the dog on the LEFT?"}, False),
        ({"question": "where is it?", "answer": "right"}, False),
        ({"question": "where is it?", "answers": ["middle", "to the left"]}, False),
        ({"question": "is it?", "caption": "facing east"}, False),
        ({"question": None, "target": "x", "references": ["x", "turned clockwise"]}, False),
        ({"question": "what does the sign say?"}, False),
        ({"question": "are the lefties bright?"}, True),
    ):
        raw = {"image": noise(), **texts}
        augmented = safe(raw, draws(0))
        expected = noise()[:, ::-1] if flips else noise()
        np.testing.assert_array_equal(pixels(augmented["image"]), expected, err_msg=str(texts))
        assert {key: augmented[key] for key in texts} == texts


def test_swap_trades_words_everywhere_and_keeps_capitals():
    swap = augment.build(flip="swap", flip_rate=1.0, side_words=[("links", "rechts")])
    raw = example(
        "Left of the LEFT tree, is the leftmost bird facing North-West?",
        target="links vom Baum",
        references=["der rechte Baum rechts"],
        answer="counterclockwise",
    )
    augmented = swap(raw, draws(0))
    assert (
        augmented["question"] == "Right of the RIGHT tree, is the rightmost bird facing North-East?"
    )
    assert augmented["target"] == "rechts vom Baum"
    assert augmented["references"] == ["der rechte Baum links"]
    assert augmented["answer"] == "clockwise"
    twice = swap(augmented, draws(0))
    assert {k: twice[k] for k in ("question", "target", "answer")} == {
        k: raw[k] for k in ("question", "target", "answer")
    }
    unread = swap(example("what letter is on the left?"), draws(0))
    np.testing.assert_array_equal(pixels(unread["image"]), noise())
    assert unread["question"] == "what letter is on the left?"


def test_pairs_that_count_their_pictures_are_not_mirrored():
    swap = augment.build(flip="swap", flip_rate=1.0)
    raw = example("the first picture has a dog on the left", second_image=noise(seed=1))
    augmented = swap(raw, draws(0))
    assert augmented["question"] == raw["question"]
    np.testing.assert_array_equal(pixels(augmented["image"]), noise())
    # Nothing names a side: both are mirrored where they are.
    augmented = swap(example("the first picture has a dog", second_image=noise(seed=1)), draws(0))
    np.testing.assert_array_equal(pixels(augmented["second_image"]), noise(seed=1)[:, ::-1])


def nearest_color(pixel):
    names = list(shapes_things.COLORS)
    palette = np.array([shapes_things.COLORS[name] for name in names], float)
    unit = palette / np.linalg.norm(palette, axis=1, keepdims=True)
    return names[int(np.argmax(unit @ (pixel / np.linalg.norm(pixel))))]


@pytest.mark.parametrize("fields", [
    dict(hue=0.5, saturation=1.0, brightness=0.3, contrast=0.3),
    dict(randaugment_ops=1, randaugment_magnitude=10, randaugment_geometric=False),
])  # fmt: skip
def test_named_colors_stay_what_they_are(fields):
    """The middle of a lone object keeps its color where a text names it, and else may not."""
    change = augment.build(**fields)
    kept = {True: 0, False: 0}
    total = 0
    for color in shapes_things.COLORS:
        thing = shapes_things.Thing("square", color, "large", 0.5, 0.5)
        image = scene_of((thing,))
        for seed in range(25):
            total += 1
            for named in (True, False):
                raw = {"image": image, "question": f"is it {color if named else 'a square'}?"}
                middle = pixels(change(raw, draws(seed))["image"])[20:28, 20:28].reshape(-1, 3)
                kept[named] += nearest_color(middle.mean(0) + 1e-3) == color
    assert kept[True] == total and kept[False] < 0.9 * total


def test_lit_scenes_keep_their_brightness():
    change = augment.build(brightness=1.0)
    for question, same in (("is the room dark?", True), ("is it a room?", False)):
        augmented = change(example(question), draws(3))
        assert (pixels(augmented["image"]) == noise()).all() == same


@pytest.mark.parametrize("keep", [(), ("color",), ("light",), ("place",), ("color", "place")])
def test_randaugment_draws_only_what_keeps_the_meaning(keep, monkeypatch):
    drawn = set()

    def recording(name, op):
        def make(level):
            drawn.add((name, abs(level)))
            return op.make(level)

        return op._replace(make=make)

    for name, op in augment_images.OPERATIONS.items():
        monkeypatch.setitem(augment_images.OPERATIONS, name, recording(name, op))
    for seed in range(150):
        augment_images.randaugment(draws(seed), 2, 8.0, keep=keep)
    operations = augment_images.OPERATIONS
    assert {name for name, _ in drawn} == {
        name for name, op in operations.items() if not op.changes & set(keep)
    }
    for name, level in drawn:
        assert level == (0.5 if operations[name].fades and "color" in keep else 0.8)


def test_place_words_hold_geometry_back(monkeypatch):
    kept = []
    monkeypatch.setattr(
        augment_images,
        "randaugment",
        lambda rng, n, m, *, keep: kept.append(set(keep)) or (lambda image: image),
    )
    for question, fields, expected in (
        ("is there a dog?", {}, set()),
        ("is there a dog?", {"randaugment_geometric": False}, {"place"}),
        ("is a dog above it?", {}, {"place"}),
        ("is a dog to the left?", {}, {"place"}),
        ("what color is it?", {}, {"color"}),
        ("ist es rot?", {"color_words": ["Rot"]}, {"color"}),
        ("is the red light at the top?", {}, {"color", "light", "place"}),
    ):
        augment.build(randaugment_ops=1, **fields)(example(question), draws(0))
        assert kept.pop() == expected, question


# Pictures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(augment_images.OPERATIONS))
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.3, 1.0])
def test_every_operation_gives_a_picture_of_the_same_form(name, level):
    image = Image.fromarray(np.clip(noise(31), 20, 235)).resize((40, 31))
    before = pixels(image).copy()
    augmented = augment_images.OPERATIONS[name].make(level)(image)
    assert augmented.size == (40, 31) and augmented.mode == "RGB"
    assert (pixels(augmented) == before).all() == (name == "identity")
    np.testing.assert_array_equal(pixels(image), before)


def test_operations_go_the_way_they_say():
    ramp = np.zeros((20, 20, 3), np.uint8)
    ramp[:, 10:] = 200
    image = Image.fromarray(ramp)
    make = {name: op.make for name, op in augment_images.OPERATIONS.items()}
    assert pixels(make["brightness"](0.5)(image)).mean() > pixels(image).mean()
    assert pixels(make["contrast"](-1.0)(image)).std() < 0.2 * pixels(image).std()
    assert (pixels(make["solarize"](1.0)(image)) == 255 - ramp).all()
    assert set(np.unique(pixels(make["posterize"](1.0)(image)))) == {0, 192}
    moved = pixels(make["translate_x"](1.0)(image))
    # 150 of 331 pixels to the left; what comes in is gray.
    assert (moved[:, :10] > 150).mean() > 0.8 and (moved[:, 12:] == 128).all()
    turned = pixels(make["rotate"](1.0)(Image.fromarray(ramp)))
    assert (turned[0, 0] == 128).all() and turned[10, 15].mean() > 150


def test_crops_keep_to_their_scale_and_ratio():
    image = Image.fromarray(noise(30)).resize((45, 30))
    full = pixels(image)
    corners = set()
    for seed in range(40):
        augmented = augment_images.random_resized_crop(draws(seed), (0.2, 0.5), (0.5, 2.0))(image)
        width, height = augmented.size
        assert 0.18 < width * height / 1350 < 0.53 and 0.45 < width / height < 2.2
        spots = [
            (y, x)
            for y in range(31 - height)
            for x in range(46 - width)
            if (full[y, x] == pixels(augmented)[0, 0]).all()
            and (full[y : y + height, x : x + width] == pixels(augmented)).all()
        ]
        assert len(spots) == 1
        corners |= set(spots)
    assert len(corners) > 20
    whole = augment_images.random_resized_crop(draws(0), (1.0, 1.0), (1.0, 1.0))(image)
    np.testing.assert_array_equal(pixels(whole), full[:, 7:37])


def test_erasing_covers_a_box_of_the_area():
    black = Image.fromarray(np.zeros((50, 50, 3), np.uint8))
    for seed in range(40):
        augmented = pixels(
            augment_images.random_erasing(draws(seed), (0.1, 0.3), (0.5, 2.0))(black)
        )
        rows, columns = np.nonzero(augmented.any(2))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert 0.08 < height * width / 2500 < 0.33 and 0.4 < height / width < 2.5
        assert augmented.any(2).sum() == height * width and np.unique(augmented).size > 100
    assert not pixels(black).any()
    covered = [
        (pixels(augment.build(erase_rate=0.3)(example(), draws(s))["image"]) != noise()).any()
        for s in range(200)
    ]
    assert 0.2 < np.mean(covered) < 0.4


def test_jitter_stays_in_range_and_zero_changes_nothing():
    gray = np.full((8, 8, 3), 100, np.uint8)
    light, raw = augment.build(brightness=0.2), {"image": gray, "question": "what?"}
    levels = {pixels(light(raw, draws(seed))["image"])[0, 0, 0] for seed in range(60)}
    assert min(levels) >= 80 and max(levels) <= 120 and len(levels) > 15
    red = np.full((8, 8, 3), (200, 20, 20), np.uint8)
    turned = [
        pixels(augment.build(hue=0.5)({"image": red, "question": "what?"}, draws(s))["image"])[0, 0]
        for s in range(30)
    ]
    assert len({int(np.argmax(pixel)) for pixel in turned}) == 3
    assert all(195 <= max(pixel) <= 205 and 15 <= min(pixel) <= 25 for pixel in turned)
    still = augment.build()(example(), draws(0))
    assert still["image"] is not None and (pixels(still["image"]) == noise()).all()


def test_both_pictures_of_a_pair_change_alike():
    change = augment.build(**{**EVERYTHING, "flip": "safe", "randaugment_ops": 3})
    for seed in range(20):
        augmented = change(example(second_image=noise()), draws(seed))
        np.testing.assert_array_equal(pixels(augmented["image"]), pixels(augmented["second_image"]))
        alone = change(example(), draws(seed))
        np.testing.assert_array_equal(pixels(augmented["image"]), pixels(alone["image"]))


def test_any_kind_of_image_and_none():
    buffer = io.BytesIO()
    Image.fromarray(noise()).convert("L").save(buffer, "PNG")
    change = augment.build(**EVERYTHING)
    for image in (buffer.getvalue(), Image.fromarray(noise()).convert("P"), noise()[:, :, 0]):
        assert change({**example(), "image": image}, draws(0))["image"].mode == "RGB"
    assert change({**example(), "image": None}, draws(0))["image"] is None
    assert change({"image": noise(), "question": None}, draws(1))["question"] is None


def test_large_jpegs_are_decoded_small_if_allowed():
    buffer = io.BytesIO()
    Image.fromarray(noise(512)).save(buffer, "JPEG")
    raw = {"image": buffer.getvalue(), "question": "what?"}
    sizes = [
        augment.build(brightness=0.1, decode_size=size)(raw, draws(0))["image"].size[0]
        for size in (None, 100, 256)
    ]
    assert sizes == [512, 128, 256]


# Words --------------------------------------------------------------------------------------------


def test_masked_words_become_the_tokenizers_mask():
    data = in_memory({"train": [example("what colour is the cat's tail, here?")]})
    processor = Processor.learn(data, image_size=8, max_length=24)
    plain, _ = processor.text("what colour is the cat's tail, here?")
    change = augment.build(mask_rate=0.4)
    shares = []
    for seed in range(60):
        raw = change(data.source("train")[0], draws(seed))
        words = raw["question"].replace(",", " ,").replace("?", " ?").split()
        original = "what colour is the cat's tail , here ?".split()
        assert len(words) == len(original)
        hidden = [now != was for now, was in zip(words, original, strict=True)]
        assert all(now == "[MASK]" for now, hide in zip(words, hidden, strict=True) if hide)
        tokens, _ = processor.text(raw["question"])
        assert (tokens == processor.tokenizer.mask_id).sum() == sum(hidden)
        shares.append(sum(hidden) / 7)
        assert raw["answer"] == "yes" and raw["image"] is data.source("train")[0]["image"]
    assert 0.33 < np.mean(shares) < 0.47
    assert not (plain == processor.tokenizer.mask_id).any()


def test_one_word_is_spared():
    left = {augment.build(mask_rate=1.0)(example(), draws(s))["question"] for s in range(30)}
    assert left == {"is [MASK] [MASK]?", "[MASK] it [MASK]?", "[MASK] [MASK] big?"}


def test_words_are_found_in_every_text():
    raw = {"question": "Über o'clock?", "answers": ["A-b"], "references": None, "target": "c1"}
    assert augment_words.words(raw) == {"über", "o'clock", "a", "b", "c"}


# Determinism --------------------------------------------------------------------------------------


def test_equal_generators_give_equal_examples_and_others_differ():
    change = augment.build(**EVERYTHING)
    raw = example("is the bird to the left of the tree?", second_image=noise(seed=4))
    before = {key: np.array(value) for key, value in raw.items()}
    augmented = [change(raw, draws(seed)) for seed in (0, 0, 1)]
    for key in ("image", "second_image"):
        first, again, other = (pixels(one[key]) for one in augmented)
        np.testing.assert_array_equal(first, again)
        assert first.shape != other.shape or (first != other).any()
    assert augmented[0]["question"] == augmented[1]["question"]
    for key, value in before.items():
        np.testing.assert_array_equal(np.array(raw[key]), value)


def test_batches_do_not_depend_on_processes_or_threads():
    rows = [
        {"image": noise(seed=i), "question": f"is bird {i} on the left?", "answer": "yes", "id": i}
        for i in range(11)
    ]
    data = in_memory({"train": rows})
    processor = Processor.learn(data, image_size=16)
    change = augment.build(**EVERYTHING)

    def read(**options):
        with pipeline.train_iterator(
            data.source("train"), processor, batch_size=4, seed=2, augment=change, **options
        ) as iterator:
            return [next(iterator) for _ in range(5)]

    whole = read(num_threads=0)
    assert len({batch["image"].tobytes() for batch in whole}) == 5
    parts = [read(process_index=i, process_count=2, num_threads=2) for i in range(2)]
    for step, expected in enumerate(whole):
        for key in expected:
            both = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(both, expected[key])


def test_flips_come_at_their_rate():
    change = augment.build(flip="safe", flip_rate=0.25)
    flipped = [
        (pixels(change(example(), draws(seed))["image"]) == noise()[:, ::-1]).all()
        for seed in range(400)
    ]
    assert 0.18 < np.mean(flipped) < 0.32
    np.testing.assert_array_equal(
        pixels(ImageOps.mirror(Image.fromarray(noise()))), noise()[:, ::-1]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"flip": "yes"}, "flip is 'yes'; choose one of off, safe, swap"),
        ({"hue": 0.6}, "hue is 0.6; .*0..0.5"),
        ({"mask_rate": -0.1}, "mask_rate is -0.1; .*0..1"),
        ({"randaugment_magnitude": 11}, "randaugment_magnitude is 11; .*0..10"),
        ({"randaugment_ops": -1}, "randaugment_ops is -1"),
        ({"crop_scale": (0.5, 1.5)}, "crop_scale is .*at most 1"),
        ({"crop_scale": 0.5}, "crop_scale is 0.5; expected two"),
        ({"crop_ratio": (2.0, 1.0)}, "crop_ratio is .*ascending"),
        ({"erase_area": (0.0, 0.3)}, "erase_area is "),
        ({"decode_size": 0}, "decode_size is 0"),
        ({"mask_token": ""}, "mask_token is empty"),
        ({"side_words": ["links"]}, "side_words holds 'links'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(MmflaxError, match=r"augment\." + message):
        augment.build(**fields)
