"""The loop: one compile, exact resume, stopping, and what it writes down."""

import json
import os
import signal

import jax
import numpy as np
import pytest
from jax import monitoring

from mmflax.checkpoints.store import Store
from mmflax.distributed.mesh import make_mesh
from mmflax.errors import MmflaxError
from mmflax.training import loop
from mmflax.training.observe import MetricsFile
from tests.tiny import same


class Recorder:
    def __init__(self):
        self.records, self.messages, self.closed = [], [], False

    def start(self, step, total):
        self.began = (step, total)

    def record(self, step, values):
        self.records.append((step, values))

    def message(self, text):
        self.messages.append(text)

    def close(self):
        self.closed = True


class Killed(BaseException):
    """No error that the loop could know."""


def nan(batch):
    return {**batch, "x": np.full_like(batch["x"], np.nan)}


def kill(batch):
    raise Killed


def train(toy, batches, steps, store=None, **fields):
    recorder = Recorder()
    fields = {"log_every": 2, "checkpoint_every": 2, "observers": [recorder], **fields}
    result = loop.run(
        train_step=toy.train_step,
        abstract_state=toy.abstract(),
        create_state=toy.create,
        batches=batches,
        mesh=toy.mesh,
        steps=steps,
        store=store,
        **fields,
    )
    return result, recorder


@pytest.fixture
def adam(toy):
    return toy(
        mesh=make_mesh(2, 2, 2),
        optim=dict(name="adamw", weight_decay=0.1),
        step=dict(ema_decay=0.9),
        ema=True,
    )


def test_the_step_is_traced_once_and_the_plain_loop_is_repeated(toy, toy_batches):
    made = toy()
    traces = []
    plain = made.train_step

    def counted(state, batch):
        traces.append(1)
        return plain(state, batch)

    expected, _ = made.run([made.batch(i) for i in range(7)])
    made.train_step = counted
    batches = toy_batches(made)
    result, recorder = train(made, batches, 7)
    assert len(traces) == 1
    same(result.state, expected)
    assert batches.seen == list(range(7)) and batches.closed and recorder.closed
    assert [step for step, _ in recorder.records] == [2, 4, 6, 7]
    assert any("compiled the train step in" in text for text in recorder.messages)


def test_logged_values_are_means_over_their_window(toy, toy_batches):
    made = toy()
    losses, state = [], made.create()
    for i in range(4):
        state, sums = made.run([made.batch(i)], state)
        losses.append(sums["loss"][0] / sums["loss"][1])
    _, recorder = train(made, toy_batches(made), 4, log_every=2)
    found = [values["loss"] for _, values in recorder.records]
    np.testing.assert_allclose(found, [np.mean(losses[:2]), np.mean(losses[2:])], rtol=1e-5)
    values = recorder.records[0][1]
    assert values["examples_per_second"] == pytest.approx(16 * values["steps_per_second"])
    assert "mfu" not in values  # no peak is known for a CPU


@pytest.fixture
def fetched(monkeypatch):
    """Of each transfer of metrics, how many steps' it has."""
    found = []
    get = jax.device_get
    monkeypatch.setattr(
        loop.jax, "device_get", lambda tree: (found.append(len(tree)), get(tree))[1]
    )
    return found


def test_metrics_are_fetched_when_they_are_logged(toy, toy_batches, fetched):
    """One transfer for the metrics of a window, however many steps it has."""
    made = toy()
    _, recorder = train(made, toy_batches(made), 25, log_every=10)
    assert fetched == [10, 10, 5]
    assert [step for step, _ in recorder.records] == [10, 20, 25]
    assert all(0 <= values["input_wait"] <= 1 for _, values in recorder.records)


def test_a_long_window_keeps_few_metrics_on_the_device(toy, toy_batches, fetched, monkeypatch):
    made = toy()
    short, _ = train(made, toy_batches(made), 11, log_every=1)
    fetched.clear()
    monkeypatch.setattr(loop, "_KEPT", 4)
    long, recorder = train(made, toy_batches(made), 11, log_every=11)
    same(short.state, long.state)
    assert fetched == [4, 4, 3]
    assert [step for step, _ in recorder.records] == [11]


def test_the_host_waits_for_the_step_before_the_last(toy, toy_batches, monkeypatch):
    """Before it reads another batch, so that few batches are on the device."""
    made, order = toy(), []
    wait = jax.block_until_ready

    def waited(tree):
        order.append(f"wait {int(tree['loss'][1])}")
        return wait(tree)

    def read(index):
        return lambda batch: (order.append(f"read {index}"), batch)[1]

    monkeypatch.setattr(loop.jax, "block_until_ready", waited)
    spoil = {index: read(index) for index in range(6)}
    train(made, toy_batches(made, spoil), 6, log_every=6, checkpoint_every=None)
    # Step 3 is under way and step 2 may be, when the batch of step 4 is read.
    assert order == ["read 0", "read 1", "read 2", *(
        word for index in range(3, 6) for word in ("wait 16", f"read {index}")
    ), "wait 16"]  # fmt: skip


def test_a_thousand_steps_compile_once(toy, toy_batches):
    made, compiled = toy(), []

    def note(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(duration)

    def settled(batch):
        """What comes before the first steps is compiled."""
        assert compiled
        compiled.clear()
        return batch

    monitoring.register_event_duration_secs_listener(note)
    try:
        batches = toy_batches(made, {3: settled})
        train(made, batches, 1000, log_every=100, checkpoint_every=None)
    finally:
        monitoring.unregister_event_duration_listener(note)
    assert compiled == [] and batches.seen == list(range(1000))


def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(adam, toy_batches, tmp_path):
    expected, _ = train(adam, toy_batches(adam), 9)
    with pytest.raises(Killed):
        train(adam, toy_batches(adam, {5: kill}), 9, Store(tmp_path))
    batches = toy_batches(adam)
    result, recorder = train(adam, batches, 9, Store(tmp_path))
    assert recorder.began == (4, 9) and "resumed from step 4" in recorder.messages
    assert batches.seen == list(range(4, 9))
    same(result.state, expected.state)


@pytest.mark.slow
def test_killed_at_twenty_random_steps(adam, toy_batches, tmp_path):
    expected, _ = train(adam, toy_batches(adam), 12)
    draw = np.random.default_rng(0)
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        with pytest.raises(Killed):
            spoil = {int(draw.integers(1, 12)): kill}
            every = int(draw.integers(1, 6))
            train(adam, toy_batches(adam, spoil), 12, Store(directory), checkpoint_every=every)
        result, _ = train(adam, toy_batches(adam), 12, Store(directory))
        same(result.state, expected.state)


def test_metrics_file_has_every_step_once_after_a_resume(toy, toy_batches, tmp_path):
    made = toy()
    with pytest.raises(Killed):
        train(
            made, toy_batches(made, {7: kill}), 9, Store(tmp_path / "c"), checkpoint_every=4,
            log_every=1, observers=[MetricsFile(tmp_path)],
        )  # fmt: skip
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # cut by the kill
    train(
        made, toy_batches(made), 9, Store(tmp_path / "c"), log_every=1,
        observers=[MetricsFile(tmp_path)],
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 10))


def test_a_finished_run_has_nothing_to_do(toy, toy_batches, tmp_path):
    made = toy()
    first, _ = train(made, toy_batches(made), 3, Store(tmp_path))
    batches = toy_batches(made)
    again, recorder = train(made, batches, 3, Store(tmp_path))
    assert again.step == 3 and batches.seen == []
    assert "nothing to do: step 3 of 3 is reached" in recorder.messages


def test_evaluation_sees_the_average_and_the_best_is_kept(adam, toy_batches, tmp_path):
    given = []

    def score(params):
        given.append(jax.tree.map(np.asarray, params))
        return {"accuracy": [0.1, 0.9, 0.3, 0.2][len(given) - 1]}

    store = Store(tmp_path, keep_last=1, keep_best=1, best_metric="val/accuracy")
    result, recorder = train(
        adam, toy_batches(adam), 8, store, evals={"val": score}, eval_every=2, checkpoint_every=8
    )
    assert result.metrics == {"val/accuracy": 0.2}
    assert [step for step, v in recorder.records if "val/accuracy" in v] == [2, 4, 6, 8]
    assert store.steps() == [4, 8] and store.best_step() == 4
    np.testing.assert_array_equal(given[-1]["fc1"]["kernel"], result.state.ema["fc1"]["kernel"])


def test_one_bad_batch_is_named_and_survived(toy, toy_batches):
    made = toy()
    result, recorder = train(made, toy_batches(made, {3: nan}), 6)
    assert int(result.state.skipped) == 1
    (text,) = [text for text in recorder.messages if "not finite" in text]
    assert text.startswith("step 4:") and "b3r0, b3r1" in text and "8 more" in text
    assert [values["skipped"] for _, values in recorder.records] == [0, 1, 0]


def test_bad_batches_in_a_row_stop_the_run(toy, toy_batches, tmp_path):
    made = toy()
    spoil = {index: nan for index in (3, 4, 5)}
    store = Store(tmp_path)
    with pytest.raises(MmflaxError) as caught:
        train(made, toy_batches(made, spoil), 20, store, checkpoint_every=3, max_skipped_in_row=3)
    text = str(caught.value)
    assert "3 steps in a row, the last at step 6 with examples b5r0" in text
    assert f"the last good checkpoint is step 3 in {tmp_path}" in text
    assert "\n" not in text


def test_sigterm_saves_and_ends_without_an_error(toy, toy_batches, tmp_path):
    made = toy()

    def ask(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    before = signal.getsignal(signal.SIGTERM)
    result, recorder = train(
        made, toy_batches(made, {3: ask}), 9, Store(tmp_path), checkpoint_every=None
    )
    assert result.preempted and result.step == 4
    assert signal.getsignal(signal.SIGTERM) is before
    assert recorder.messages[-1].startswith("asked to stop (SIGTERM) at step 4 of 9")
    resumed, _ = train(made, toy_batches(made), 9, Store(tmp_path))
    expected, _ = train(made, toy_batches(made), 9)
    same(resumed.state, expected.state)


def test_data_that_ends_is_an_error(toy, toy_batches):
    made = toy()

    def stop(batch):
        raise StopIteration

    with pytest.raises(MmflaxError, match="training data ended at step 3 of 9"):
        train(made, toy_batches(made, {3: stop}), 9)


def test_a_directory_that_cannot_be_written_is_one_sentence(toy, toy_batches, tmp_path):
    made = toy()
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MmflaxError, match="could not write checkpoint .*/file/2: .*none is compl"):
        train(made, toy_batches(made), 4, Store(tmp_path / "file"))


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(toy, toy_batches, tmp_path):
    made = toy()
    train(made, toy_batches(made), 4, Store(tmp_path))
    (tmp_path / "4" / "data" / "metadata").write_bytes(b"{}")
    result, recorder = train(made, toy_batches(made), 6, Store(tmp_path))
    assert recorder.began == (2, 6)
    assert any("4 is damaged: data/metadata differs" in text for text in recorder.messages)
    expected, _ = train(made, toy_batches(made), 6)
    same(result.state, expected.state)
    assert Store(tmp_path).steps() == [2, 4, 6]
