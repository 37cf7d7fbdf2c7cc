"""Nothing is lost or seen twice, whatever the process count and wherever a run stops."""

import dataclasses
import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmflax.data import pipeline
from mmflax.data.dataset import Subset, in_memory
from mmflax.data.image import transforms
from mmflax.data.image.bad_images import BadImages
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError

SIZE = 23
GOLDEN_ORDER = [3, 2, 1, 8, 6, 0, 7, 4, 5, 9, 7, 6, 4, 5, 3, 9, 1, 0, 2, 8]


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    examples = [
        {
            "image": rng.integers(0, 255, (8, 8, 3), np.uint8),
            "question": f"number {index}?",
            "answer": str(index % 3),
            "id": str(index),
        }
        for index in range(SIZE)
    ]
    dataset = in_memory({"train": examples})
    return dataset.source("train"), Processor.learn(dataset, image_size=8)


def take(iterator, count):
    batches = [iterator.next() for _ in range(count)]
    iterator.close()
    return batches


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        np.testing.assert_array_equal(first[key], second[key])


def joined(batches):
    """One global batch from the processes' blocks, in process order."""
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def test_each_epoch_is_another_permutation(data):
    batches = take(pipeline.train_iterator(*data, batch_size=4, seed=0), 2 * SIZE)
    ids = np.concatenate([batch["id"] for batch in batches]).reshape(8, SIZE)
    for epoch in ids:
        assert sorted(epoch, key=int) == [str(index) for index in range(SIZE)]
    assert len({tuple(epoch) for epoch in ids}) == 8
    other = take(pipeline.train_iterator(*data, batch_size=SIZE, seed=1), 1)[0]
    assert tuple(other["id"]) not in {tuple(epoch) for epoch in ids}


def test_the_order_is_recorded():
    """A changed order would break every resumed run: change it only with a note to users."""
    order = pipeline.EpochOrder(10, seed=0)
    assert [order[place] for place in range(20)] == GOLDEN_ORDER


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_the_blocks_of_one_global_batch(data, processes):
    def flip(raw, rng):
        image = Image.fromarray(raw["image"])
        return {**raw, "image": ImageOps.mirror(image) if rng.random() < 0.5 else image}

    options = {"batch_size": 8, "seed": 3, "augment": flip}
    whole = take(pipeline.train_iterator(*data, **options), 7)
    parts = [
        take(
            pipeline.train_iterator(*data, **options, process_index=index, process_count=processes),
            7,
        )
        for index in range(processes)
    ]
    for step, expected in enumerate(whole):
        assert_same(joined([part[step] for part in parts]), expected)


def test_augmentations_draw_anew_each_epoch(data):
    draws = []

    def record(raw, rng):
        draws.append(float(rng.random()))
        return raw

    iterator = pipeline.train_iterator(
        *data, batch_size=SIZE, seed=0, augment=record, num_threads=0
    )
    take(iterator, 2)
    assert len(set(draws)) == len(draws) == 2 * SIZE


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_resuming_anywhere_gives_the_same_batches(data, threads):
    options = {"batch_size": 6, "seed": 5, "num_threads": threads}
    straight = take(pipeline.train_iterator(*data, **options), 12)
    for stop in (0, 1, 3, 4, 11):
        with pipeline.train_iterator(*data, **options) as first:
            for _ in range(stop):
                first.next()
            saved = first.position
        assert saved == stop
        with pipeline.train_iterator(*data, **options, start=saved) as second:
            assert second.position == stop
            for expected in straight[stop:]:
                assert_same(next(second), expected)
        # Going back in the same iterator, as after a bad step.
        with pipeline.train_iterator(*data, **options) as third:
            third.next()
            third.set_position(stop)
            assert_same(third.next(), straight[stop])
            assert third.position == stop + 1


def test_a_far_position_costs_nothing(data):
    with pipeline.train_iterator(*data, batch_size=4, seed=0, start=10**9) as iterator:
        started = time.monotonic()
        iterator.next()
        assert time.monotonic() - started < 5
        assert iterator.position == 10**9 + 1


def test_a_source_smaller_than_a_batch_repeats(data):
    source, processor = data
    small = Subset(source, [4, 2, 9])
    batch = take(pipeline.train_iterator(small, processor, batch_size=7, seed=0), 1)[0]
    assert sorted(batch["id"][:3]) == sorted(batch["id"][3:6]) == ["2", "4", "9"]
    one = take(pipeline.train_iterator(Subset(source, [5]), processor, batch_size=2, seed=0), 2)
    assert one[1]["id"].tolist() == ["5", "5"]


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("size", [1, 3, 4, 5, 3 * 4 + 7])
def test_evaluation_sees_every_example_once(data, size, processes):
    source, processor = data
    source = Subset(source, range(size))
    parts = [
        list(
            pipeline.eval_batches(
                source, processor, batch_size=4, process_index=index, process_count=processes
            )
        )
        for index in range(processes)
    ]
    assert {len(part) for part in parts} == {-(-size // 4)}
    seen = []
    for step in range(len(parts[0])):
        batch = joined([part[step] for part in parts])
        assert batch["mask"].shape == (4,) and np.isfinite(batch["image"]).all()
        assert batch["text_mask"].any(axis=1).all()
        assert (batch["id"][~batch["mask"]] == "").all()
        seen += batch["id"][batch["mask"]].tolist()
    assert seen == [str(index) for index in range(size)]


def test_threads_never_run_far_ahead(data):
    source, processor = data
    read = []

    class Counting:
        def __len__(self):
            return len(source)

        def __getitem__(self, index):
            read.append(index)
            return source[index]

    with pipeline.train_iterator(
        Counting(), processor, batch_size=2, seed=0, num_threads=2, prefetch=2
    ) as iterator:
        iterator.next()
        time.sleep(0.3)
        assert len(read) <= 2 * (1 + 2 + 2 + 1)


@pytest.mark.parametrize("threads", [0, 2])
def test_a_bad_image_is_named(data, threads):
    source, processor = data
    rows = [source[0], {**source[1], "image": b"\xff\xd8\xff\xe0 cut", "id": "cat.jpg:7"}]
    with pipeline.train_iterator(
        rows, processor, batch_size=2, seed=0, num_threads=threads
    ) as iterator:
        with pytest.raises(MmflaxError, match=r"Example cat\.jpg:7: The image"):
            iterator.next()
    with pytest.raises(MmflaxError, match="cat.jpg:7"):
        list(pipeline.eval_batches(rows, processor, batch_size=2, num_threads=threads))


CUT = b"\xff\xd8\xff\xe0 cut"
BAD = (3, 11, 17)  # of SIZE


@pytest.fixture
def damaged(data):
    """The rows with three images that cannot be read, by index."""
    source, processor = data
    rows = [source[index] for index in range(SIZE)]
    for index in BAD:
        rows[index] = {**rows[index], "image": CUT if index != 11 else "/nowhere/cat.jpg"}
    return rows, processor


def brighten(raw, rng):
    """Decodes, as augmentations do, and draws."""
    image = transforms.open_image(raw["image"])
    return {**raw, "image": image.point(lambda level: level // 2 + int(rng.integers(100)))}


@pytest.mark.parametrize("augment", [None, brighten])
def test_bad_images_are_replaced_from_the_next_batch(damaged, data, augment):
    """Every row that can be read stays; another takes the row's example one batch later."""
    options = {"batch_size": 4, "seed": 3, "num_threads": 0, "augment": augment}
    reported = []
    with pipeline.train_iterator(
        *damaged, **options, max_bad_fraction=0.2, on_bad=lambda *pair: reported.append(pair)
    ) as iterator:
        found = [next(iterator) for _ in range(3 * SIZE)]
        assert set(iterator.bad) == {str(index) for index in BAD}
        assert "cat.jpg does not exist" in iterator.bad["11"] and "damaged" in iterator.bad["3"]
        assert reported == list(iterator.bad.items())
    order = pipeline.EpochOrder(SIZE, 3)
    whole = take(pipeline.train_iterator(*data, **options), 3 * SIZE)
    replaced = 0
    for step, (batch, clean) in enumerate(zip(found, whole, strict=True)):
        assert batch["image"].shape == clean["image"].shape and batch["mask"].all()
        for row in range(4):
            place = 4 * step + row
            if order[place] not in BAD:
                for key in batch:
                    np.testing.assert_array_equal(batch[key][row], clean[key][row])
                continue
            replaced += 1
            while order[place] in BAD:
                place += 4
            assert batch["id"][row] == str(order[place])
    assert replaced == 3 * 3 * 4


def test_replaced_batches_are_a_function_of_the_step(damaged):
    """Whatever was found bad before: after resuming, going back, and over processes."""
    options = {"batch_size": 4, "seed": 1, "augment": brighten, "max_bad_fraction": 0.2}
    straight = take(pipeline.train_iterator(*damaged, **options), 3 * SIZE)
    for start in (1, 5, 30):
        resumed = take(pipeline.train_iterator(*damaged, **options, start=start), 6)
        for batch, expected in zip(resumed, straight[start:], strict=False):
            assert_same(batch, expected)
    with pipeline.train_iterator(*damaged, **options) as iterator:
        for step in (40, 3, 41, 3):
            iterator.set_position(step)
            assert_same(next(iterator), straight[step])
    parts = [
        take(
            pipeline.train_iterator(*damaged, **options, process_index=index, process_count=2),
            3 * SIZE,
        )
        for index in range(2)
    ]
    for step, expected in enumerate(straight):
        assert_same(joined([part[step] for part in parts]), expected)


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("augment", [None, brighten])
def test_too_many_bad_images_stop(damaged, threads, augment):
    options = {"batch_size": 4, "seed": 0, "num_threads": threads, "augment": augment}
    with pipeline.train_iterator(*damaged, **options, max_bad_fraction=0.1) as iterator:
        with pytest.raises(MmflaxError) as caught:
            for _ in range(SIZE):
                next(iterator)
        assert len(iterator.bad) == 3
    message = str(caught.value)
    assert message.startswith("3 of the 23 examples cannot be used for their images")
    assert "max_bad_fraction = 0.1" in message and message.count(". ") == 0
    for index in BAD:
        assert f"{index}: The image" in message
    with pipeline.train_iterator(*damaged, **options) as iterator:
        with pytest.raises(MmflaxError, match="Example (3|11|17): The image"):
            for _ in range(SIZE):
                next(iterator)
        assert iterator.bad == {}


def test_a_bad_start_stops_before_the_whole_is_read():
    """Ten are enough to judge by what was seen, long before they are a twentieth of all."""
    bad = BadImages(1000, 0.05, None)
    bad.see(range(60))
    for index in range(60, 69):
        bad.add(index, {"id": f"n{index}"}, "The image is damaged.")
    with pytest.raises(MmflaxError, match=r"10 of the 70 examples seen so far .*\(n60: The image"):
        bad.add(69, {"id": "n69"}, "The image is damaged.")
    reported = []
    bad = BadImages(1000, 0.05, lambda *pair: reported.append(pair))
    bad.see(range(500))
    for index in range(500, 525):
        bad.add(index, {"id": index}, "no")
        bad.add(index, {"id": index}, "no")
    assert len(bad.reasons()) == 25 and 510 in bad and 499 not in bad
    assert reported == [(str(index), "no") for index in range(500, 525)]


def test_a_bad_image_is_read_no_more(damaged):
    rows, processor = damaged
    read = []

    class Counting:
        def __len__(self):
            return len(rows)

        def __getitem__(self, index):
            read.append(index)
            return rows[index]

    with pipeline.train_iterator(
        Counting(), processor, batch_size=4, seed=0, num_threads=0, max_bad_fraction=0.2
    ) as iterator:
        for _ in range(10 * SIZE):
            next(iterator)
    # Once as it came, and once more to see what was wrong with the batch.
    assert all(read.count(index) <= 2 for index in BAD) and read.count(0) >= 40


def test_a_text_that_cannot_be_used_stops_all_the_same(damaged):
    rows, processor = damaged
    rows = [{**row, "question": ""} if row["id"] == "5" else row for row in rows]
    with pipeline.train_iterator(
        rows, processor, batch_size=4, seed=0, max_bad_fraction=0.5
    ) as iterator:
        with pytest.raises(MmflaxError, match="Example 5: The question '' is empty"):
            for _ in range(SIZE):
                next(iterator)
    with pytest.raises(MmflaxError, match="Example 5: The question '' is empty"):
        list(pipeline.eval_batches(rows, processor, batch_size=4, max_bad_fraction=0.5))


def test_an_augmentation_that_fails_names_the_example(data):
    def fail(raw, rng):
        raise MmflaxError("The crop is empty." if raw["id"] == "7" else "")

    source, processor = data
    for fraction in (0.0, 0.5):
        with pipeline.train_iterator(
            Subset(source, [7]), processor, batch_size=1, seed=0, augment=fail,
            max_bad_fraction=fraction,
        ) as iterator:  # fmt: skip
            with pytest.raises(MmflaxError, match="Example 7: The crop is empty"):
                next(iterator)


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_masks_bad_images_out(damaged, data, processes):
    options = {"batch_size": 4, "process_count": processes}
    parts, bad = [], {}
    for index in range(processes):
        batches = pipeline.eval_batches(
            *damaged, **options, process_index=index, max_bad_fraction=0.2
        )
        parts.append(list(batches))
        bad |= batches.bad
    clean = [
        list(pipeline.eval_batches(*data, **options, process_index=index))
        for index in range(processes)
    ]
    assert set(bad) == {str(index) for index in BAD}
    seen = []
    for step in range(len(parts[0])):
        batch, expected = (joined([part[step] for part in half]) for half in (parts, clean))
        used = batch["mask"]
        seen += batch["id"][used].tolist()
        assert (batch["id"][~used] == "").all() and np.isfinite(batch["image"]).all()
        assert batch["text_mask"].any(axis=1).all()
        for key in batch:
            np.testing.assert_array_equal(batch[key][used], expected[key][used])
    assert seen == [str(index) for index in range(SIZE) if index not in BAD]
    with pytest.raises(MmflaxError, match="3 of the 23 examples .*max_bad_fraction = 0.1"):
        list(pipeline.eval_batches(*damaged, batch_size=4, max_bad_fraction=0.1))


@pytest.mark.parametrize("train", [True, False])
def test_the_first_bad_image_says_what_would_leave_it_out(data, train):
    source, processor = data
    rows = [{**source[i], "image": CUT} if i == 1 else source[i] for i in range(4)]
    with pytest.raises(
        MmflaxError, match=r"Example 1: .*; mend it, or set --config.data.max_bad_fraction=0.5,"
    ):
        if train:
            pipeline.train_iterator(rows, processor, batch_size=4, seed=0, num_threads=0).next()
        else:
            list(pipeline.eval_batches(rows, processor, batch_size=4, num_threads=0))
    (batch,) = pipeline.eval_batches(rows, processor, batch_size=4, max_bad_fraction=0.5)
    assert batch["mask"].tolist() == [True, False, True, True]
    rows[1] = {**source[1], "question": ""}
    with pytest.raises(MmflaxError, match="Example 1: The question '' is empty") as caught:
        list(pipeline.eval_batches(rows, processor, batch_size=4, num_threads=0))
    assert "max_bad_fraction" not in str(caught.value)


def test_a_bad_second_image_counts_too(data):
    source, processor = data
    processor = dataclasses.replace(processor, second_images=True)
    rows = [{**source[i], "second_image": CUT if i == 2 else source[i]["image"]} for i in range(6)]
    batches = pipeline.eval_batches(rows, processor, batch_size=6, max_bad_fraction=0.5)
    assert next(batches)["mask"].tolist() == [True, True, False, True, True, True]
    assert list(batches.bad) == ["2"]


def test_an_absent_image_is_not_a_bad_one(data):
    source, processor = data
    rows = [source[0], {**source[1], "image": None}]
    with pytest.raises(MmflaxError, match="Example 1: there is no image"):
        list(pipeline.eval_batches(rows, processor, batch_size=2, max_bad_fraction=0.9))
    processor = dataclasses.replace(processor, absent_images=True)
    batch = next(pipeline.eval_batches(rows, processor, batch_size=2, max_bad_fraction=0.9))
    assert batch["mask"].all() and batch["image_present"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4, "max_bad_fraction": 1.0}, "max_bad_fraction is 1.0"),
        ({"batch_size": 4, "max_bad_fraction": -0.1}, "max_bad_fraction is -0.1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 6, "process_count": 4}, "batch_size is 6; .*among 4 processes"),
        ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process_index is 2"),
        ({"batch_size": 4, "start": -1}, "position is -1"),
        ({"batch_size": 4, "seed": -1}, "seed is -1"),
    ],
)
def test_bad_options(data, options, message):
    with pytest.raises(MmflaxError, match=message):
        pipeline.train_iterator(*data, **{"seed": 0, **options})


def test_an_empty_split_is_an_error(data):
    with pytest.raises(MmflaxError, match="no examples"):
        pipeline.eval_batches([], data[1], batch_size=2)


def test_data_needs_neither_tensorflow_nor_torch():
    import subprocess

    code = (
        "import sys; import mmflax.data.pipeline, mmflax.data.datasets.folder;"
        "import mmflax.data.datasets.shapes;"
        "print([m for m in ('tensorflow', 'torch', 'tensorflow_datasets') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
