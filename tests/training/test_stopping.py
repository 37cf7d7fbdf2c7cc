"""Early stopping: when a run ends, and that an interruption changes nothing about it."""

import json
import os
import signal

import numpy as np
import pytest

from mmflax.checkpoints.store import Store
from mmflax.training import loop
from mmflax.training.stopping import EarlyStopping
from tests.tiny import same

NAN = float("nan")
# values of the evaluations, patience, mode -> after which evaluation it ends (None: never)
CASES = [
    ([0.1, 0.2, 0.3, 0.4], 1, "max", None),
    ([0.1, 0.2, 0.2], 1, "max", 3),  # equal is no better
    ([0.3, 0.2, 0.1, 0.4], 3, "max", None),
    ([0.3, 0.2, 0.1, 0.3], 3, "max", 4),
    ([3.0, 2.0, 2.5, 1.0, 1.0, 1.5], 2, "min", 6),
    ([NAN, NAN], 2, "max", 2),
    ([0.1, NAN, 0.2, NAN], 2, "max", None),
    ([0.5, 1.0, 0.9], 9, "max", 2),  # perfect
    ([0.5, 0.4, 0.3], None, "max", None),
]


@pytest.mark.parametrize(("values", "patience", "mode", "expected"), CASES)
def test_when_it_ends(values, patience, mode, expected):
    stopping = EarlyStopping("v/a", mode, patience, perfect=1.0 if mode == "max" else None)
    reasons = [stopping.update(step, {"v/a": value}) for step, value in enumerate(values, 1)]
    assert next((step for step, reason in enumerate(reasons, 1) if reason), None) == expected


@pytest.mark.parametrize("seed", range(5))
def test_it_ends_exactly_when_the_best_is_patience_evaluations_old(seed):
    draw = np.random.default_rng(seed)
    values, patience = draw.integers(0, 6, 40) / 6, int(draw.integers(1, 6))
    stopping = EarlyStopping("a", patience=patience)
    for number in range(40):
        # Its state goes through JSON at every step, as through checkpoints.
        again = EarlyStopping("a", patience=patience)
        again.restore(json.loads(json.dumps(stopping.state())))
        stopping = again
        reason = stopping.update(number, {"a": values[number]})
        best = int(np.argmax(values[: number + 1]))  # the first of equals
        assert (stopping.best_step, stopping.waited) == (best, number - best)
        assert (reason is not None) == (number - best >= patience)


def test_other_metrics_and_absent_ones_change_nothing():
    stopping = EarlyStopping("a", patience=1)
    assert stopping.update(1, {"b": 0.5}) is None and stopping.step == -1
    stopping.restore({**EarlyStopping("b").state(), "best": 0.7, "waited": 9})
    stopping.restore(None)
    assert stopping.best is None and stopping.waited == 0


SCORES = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.9, 10: 0.2, 12: 0.95}


class Messages:
    def __init__(self):
        self.messages, self.evaluated = [], []

    def start(self, step, total):
        pass

    def record(self, step, values):
        if "val/a" in values:
            self.evaluated.append(step)

    def message(self, text):
        self.messages.append(text)

    def close(self):
        pass


def train(made, batches, store, patience=3, steps=20, at=(), **fields):
    seen = Messages()

    def score(params):
        kernel = params["fc1"]["kernel"]
        (now,) = [step for step, known in made.kernels.items() if np.array_equal(known, kernel)]
        return {"a": SCORES.get(now, 0.5)}

    result = loop.run(
        train_step=made.train_step, abstract_state=made.abstract(), create_state=made.create,
        batches=batches, mesh=made.mesh, steps=steps, store=store, evals={"val": score},
        eval_every=2, eval_at=at, checkpoint_every=3, observers=[seen],
        stopping=EarlyStopping("val/a", patience=patience), **fields,
    )  # fmt: skip
    return result, seen


@pytest.fixture
def made(toy):
    """A toy whose parameters of every step are known, so that a score belongs to a step."""
    made = toy()
    state, made.kernels = made.create(), {}
    for index in range(14):
        state, _ = made.run([made.batch(index)], state)
        made.kernels[index + 1] = np.asarray(state.params["fc1"]["kernel"])
    return made


def test_the_run_ends_is_saved_and_stays_ended(made, toy_batches, tmp_path):
    fields = dict(keep_last=1, keep_best=1, best_metric="val/a")
    result, seen = train(made, toy_batches(made), Store(tmp_path, **fields))
    assert result.step == 10 and not result.preempted and result.metrics == {"val/a": 0.2}
    assert result.stopped == "val/a did not improve in 3 evaluations since 0.9000 at step 4"
    assert seen.messages[-1] == f"stopped early at step 10 of 20, since {result.stopped}"
    store = Store(tmp_path, **fields)
    assert store.steps() == [4, 10] and store.best_step() == 4

    batches = toy_batches(made)
    again, seen = train(made, batches, store)
    assert again.step == 10 and again.stopped == result.stopped and batches.seen == []
    assert "nothing to do: stopped early at step 10 of 20" in seen.messages[-1]
    further, _ = train(made, toy_batches(made), store, patience=None, steps=12)
    assert further.step == 12 and further.stopped is None


@pytest.mark.parametrize("killed", [3, 4, 6, 7, 8, 9])
def test_an_interruption_changes_nothing(made, toy_batches, tmp_path, killed):
    """SIGTERM in step `killed`; at even ones it takes away an evaluation, which is made up for."""

    def ask(batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return batch

    expected, whole = train(made, toy_batches(made), None)
    fields = dict(keep_last=9, keep_best=1, best_metric="val/a")
    first, one = train(made, toy_batches(made, {killed - 1: ask}), Store(tmp_path, **fields))
    assert first.preempted and first.step <= killed and first.stopped is None
    store = Store(tmp_path, **fields)
    result, two = train(made, toy_batches(made), store)
    assert (result.step, result.stopped) == (expected.step, expected.stopped)
    same(result.state, expected.state)
    assert one.evaluated + two.evaluated == whole.evaluated == [2, 4, 6, 8, 10]
    rated = {"val/a": SCORES[first.step]} if first.step % 2 == 0 else {}
    assert store.metrics(first.step) == rated and store.verify(first.step) is None


def test_further_evaluations_happen_where_asked(made, toy_batches):
    result, seen = train(made, toy_batches(made), None, at={1, 5}, patience=None, steps=6)
    assert seen.evaluated == [1, 2, 4, 5, 6] and result.stopped is None
