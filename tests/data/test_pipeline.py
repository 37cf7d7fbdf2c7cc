"""Nothing is lost or seen twice, whatever the process count and wherever a run stops."""

import sys
import time

import numpy as np
import pytest
from PIL import Image, ImageOps

from mmflax.data import pipeline
from mmflax.data.dataset import Subset, in_memory
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
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
