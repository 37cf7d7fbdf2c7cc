"""Training loop: steps, logging, evaluation, checkpoints, preemption.

It sees a step function, a state, batches and a mesh, and never the task. Metrics stay on the device
until they are logged, so that neither waits for the other.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from mmflax.checkpoints.store import Store
from mmflax.distributed.mesh import compile_step, put_batch
from mmflax.distributed.processes import Preemption
from mmflax.errors import MmflaxError
from mmflax.training.observe import Observer, format_seconds
from mmflax.training.stopping import EarlyStopping
from mmflax.training.window import Window

Batch = dict[str, Any]
_AHEAD = 2  # steps that the host may be ahead of the device, which holds their batches and the next
_KEPT = 256  # steps whose metrics stay on the device at most


class Batches(Protocol):
    """``position`` is the index of the batch that ``next`` gives; it equals the state's step."""

    @property
    def position(self) -> int: ...

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def set_position(self, position: int) -> None: ...

    def close(self) -> None: ...


class Result(NamedTuple):
    """State after the last step, that step, the last evaluation, whether SIGTERM ended it, and why
    it was stopped early, if it was."""

    state: Any
    step: int
    metrics: dict[str, float]
    preempted: bool
    stopped: str | None = None


def run(
    *,
    train_step: Callable[[Any, Batch], tuple[Any, dict[str, Any]]],
    abstract_state: Any,
    create_state: Callable[[], Any],
    batches: Batches,
    mesh: Mesh,
    steps: int,
    store: Store | None = None,
    evals: Mapping[str, Callable[[Any], Mapping[str, float]]] | None = None,
    log_every: int = 50,
    eval_every: int | None = None,
    eval_at: Collection[int] = (),
    checkpoint_every: int | None = None,
    stopping: EarlyStopping | None = None,
    observers: Sequence[Observer] = (),
    preemption: Preemption | None = None,
    max_skipped_in_row: int = 10,
    flops_per_example: float | None = None,
    frozen: Callable[[], Any] | None = None,
) -> Result:
    """Train up to ``steps``, from the newest checkpoint in ``store`` if it has one.

    Args:
      train_step: un-jitted ``(state, batch) -> (state, {name: (sum, count)})``.
      abstract_state: shapes, dtypes and shardings of the state.
      create_state: makes the state at step 0; not called when resuming.
      batches: this process's rows of every batch; closed at the end.
      evals: name -> ``fn(params) -> {metric: value}``; given the averaged parameters where the
        state has an average. Values are recorded and saved as ``name/metric``.
      log_every: in steps.
      eval_every: in steps; evaluation also happens at the last step and at those of ``eval_at``.
      checkpoint_every: in steps; saving also happens at the last step, and when an evaluation ranks
        among the kept best.
      stopping: ends the run after an evaluation; its state is saved and restored with the rest.
      preemption: an entered ``Preemption``; by default one for the duration of the call.
      max_skipped_in_row: stop after so many updates in a row with non-finite gradients, which is
        seen when metrics are fetched: at the next log, evaluation or save.
      flops_per_example: forward and backward FLOPs of one example, for the utilization.
      frozen: makes the state's frozen parameters, which are in no checkpoint; `evals` are given
        them with the others.

    Raises:
      MmflaxError: data ended, gradients stayed non-finite, or a checkpoint could not be written.
    """
    with contextlib.ExitStack() as stack:
        for observer in observers:
            stack.callback(observer.close)
        stack.callback(batches.close)
        if store is not None:
            stack.push(functools.partial(_wait_for_save, store))
        if preemption is None:
            preemption = stack.enter_context(Preemption())
        training = _Training(
            abstract_state,
            mesh,
            steps,
            store,
            evals or {},
            observers,
            Window(mesh, flops_per_example),
            max_skipped_in_row,
            stopping,
        )

        def evaluates_at(step: int) -> bool:
            return bool(evals) and (step == steps or _due(step, eval_every) or step in eval_at)

        state, step, missed = training.begin(create_state, batches, frozen)
        if step >= steps:
            training.log(f"nothing to do: step {step} of {steps} is reached")
            return Result(state, step, {}, False)
        if missed and evaluates_at(step):
            training.evaluate_late(state, step)
        if (stopped := training.stopped()) is not None:
            training.log(
                f"nothing to do: stopped early at step {step} of {steps}, since {stopped}; "
                "--config.train.patience=None goes on"
            )
            return Result(state, step, training.metrics, False, stopped)

        batch, ids = training.next_batch(batches, step)
        compiled = training.compile(train_step, batch)
        pending: list[_Step] = []
        due = preempted = False
        training.window.restart_timer()
        while step < steps and not preempted and stopped is None:
            state, sums = compiled(state, batch)
            step += 1
            done = _Step(step, sums, ids)
            preempted = preemption.reached(step)
            last = step == steps
            if len(pending) >= _AHEAD:  # so few batches are on the device
                jax.block_until_ready(pending[-_AHEAD].sums)
            if not last and not preempted:
                # Read and placed while the device computes the step.
                batch, ids = training.next_batch(batches, step)
            if due:
                training.finish(pending, log=True)
            elif len(pending) >= _KEPT:
                training.finish(pending, log=False)
            pending.append(done)
            due = step % log_every == 0 or last or preempted

            evaluates = not preempted and evaluates_at(step)
            saves = store is not None and (last or preempted or _due(step, checkpoint_every))
            if evaluates or saves:
                training.finish(pending, log=due)
                due = False
                with training.window.timer_stopped():
                    if evaluates:
                        training.evaluate(state, step)
                        stopped = None if last else training.stopped()
                        saves = saves or training.worth_saving()
                    if saves:
                        training.save(state, step)
        training.finish(pending, log=due)
        if store is not None:
            store.wait()
        preempted = preempted and step < steps
        if preempted:
            saved = f"; step {step} is saved, the same command resumes" if store else ""
            training.log(f"asked to stop (SIGTERM) at step {step} of {steps}{saved}")
        if stopped is not None:
            training.log(f"stopped early at step {step} of {steps}, since {stopped}")
        return Result(state, step, training.metrics, preempted, stopped)


class _Step(NamedTuple):
    """A step that was started: its number, its metrics on the device, its examples' ids."""

    step: int
    sums: dict[str, Any]
    ids: Any


@dataclasses.dataclass
class _Training:
    """The loop's bookkeeping between steps."""

    abstract: Any
    mesh: Mesh
    steps: int
    store: Store | None
    evals: Mapping[str, Callable[[Any], Mapping[str, float]]]
    observers: Sequence[Observer]
    window: Window
    max_skipped_in_row: int
    stopping: EarlyStopping | None
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    _evaluated_at: int = -1
    _rows: int = 0

    def log(self, text: str) -> None:
        for observer in self.observers:
            observer.message(text)

    def record(self, step: int, values: dict[str, float]) -> None:
        for observer in self.observers:
            observer.record(step, values)

    def begin(
        self, create_state: Callable[[], Any], batches: Batches, frozen: Callable[[], Any] | None
    ) -> tuple[Any, int, bool]:
        """State and step, restored or new, with the data at the same position; and whether the
        step was saved before it could be evaluated."""
        step, missed = 0, False
        resumed = self.store is not None and bool(self.store.steps())
        if self.store is not None and resumed:
            state, data, step = self.store.restore(self.abstract.replace(frozen=None))
            if data.get("position") != step:
                raise MmflaxError(
                    f"checkpoint of step {step} holds data position {data.get('position')}: it "
                    "was not written by this loop; use another workdir"
                )
            missed = not data.get("evaluated", True)
            if self.stopping is not None:
                self.stopping.restore(data.get("stopping"))
        else:
            state = create_state()
        if frozen is not None:
            state = state.replace(frozen=frozen())
        batches.set_position(step)
        for observer in self.observers:
            observer.start(step, self.steps)
        for problem in self.store.problems if self.store is not None else ():
            self.log(problem)
        if resumed:
            self.log(f"resumed from step {step}")
        return state, step, missed

    def next_batch(self, batches: Batches, step: int) -> tuple[Batch, Any]:
        """The batch of this step on the mesh, and its example ids on the host."""
        try:
            with self.window.waiting_for_input():
                batch = dict(next(batches))
        except StopIteration:
            raise MmflaxError(
                f"the training data ended at step {step} of {self.steps}; it must repeat"
            ) from None
        ids = batch.pop("id", None)
        return put_batch(batch, self.mesh), ids

    def compile(self, train_step: Callable[..., Any], batch: Batch) -> Callable[..., Any]:
        """The run's only executable. Ahead of time, so that nothing compiles a second time."""
        self._rows = len(next(iter(batch.values())))
        began = time.perf_counter()
        compiled: Callable[..., Any] = compile_step(train_step, self.abstract, batch, self.mesh)
        self.log(f"compiled the train step in {time.perf_counter() - began:.1f} s")
        return compiled

    def finish(self, pending: list[_Step], *, log: bool) -> None:
        """Fetch the metrics of these steps into the window, and record its means if asked to.

        ``pending`` is empty afterwards.
        """
        done, pending[:] = list(pending), []
        for one, values in zip(done, jax.device_get([one.sums for one in done]), strict=True):
            self.window.add(values)
            in_row = int(values["skipped_in_row"][0])
            if in_row:
                self._report_skipped(one.step, in_row, one.ids)
        if log:
            step = done[-1].step
            self.record(step, self.window.close(self._rows, self.steps - step))

    def _report_skipped(self, step: int, in_row: int, ids: Any) -> None:
        shown = "unknown"
        if ids is not None:
            names = [str(name) for name in np.asarray(ids).reshape(-1)]
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            shown = ", ".join(names[:8]) + more
        if in_row < self.max_skipped_in_row:
            self.log(f"step {step}: gradients are not finite, update skipped; examples {shown}")
            return
        good = "no checkpoint was written yet"
        if self.store is not None:
            self.store.wait()
            saved = self.store.steps()
            if saved:
                good = f"the last good checkpoint is step {saved[-1]} in {self.store.directory}"
        raise MmflaxError(
            f"gradients were not finite for {in_row} steps in a row, the last at step {step} with "
            f"examples {shown}; {good}"
        )

    def evaluate(self, state: Any, step: int) -> None:
        params = state.evaluated()
        began = time.perf_counter()
        self.metrics = {
            f"{name}/{metric}": float(value)
            for name, function in self.evals.items()
            for metric, value in function(params).items()
        }
        self._evaluated_at = step
        if self.stopping is not None:
            self.stopping.update(step, self.metrics)
        self.record(step, self.metrics)
        self.log(f"evaluated in {format_seconds(time.perf_counter() - began)}")

    def evaluate_late(self, state: Any, step: int) -> None:
        """The evaluation that a preemption took from a saved step, so that nothing differs."""
        self.evaluate(state, step)
        assert self.store is not None
        self.store.rate(step, self.metrics)

    def stopped(self) -> str | None:
        """Why the evaluations so far end the run, or None."""
        return None if self.stopping is None else self.stopping.reason()

    def worth_saving(self) -> bool:
        """Whether the evaluation ends the run, or ranks among the kept best."""
        if self.store is None:
            return False
        return self.stopped() is not None or self.store.improves(self.metrics)

    def save(self, state: Any, step: int) -> None:
        assert self.store is not None
        evaluated = self._evaluated_at == step
        data: dict[str, Any] = {"position": step, "evaluated": evaluated}
        if self.stopping is not None:
            data["stopping"] = self.stopping.state()
        self.store.save(step, state.replace(frozen=None), data, self.metrics if evaluated else {})


def _wait_for_save(store: Store, error: type | None, *details: object) -> None:
    """Let a save in progress end after an error, unless it needs processes that are gone."""
    if error is not None and jax.process_count() == 1:
        with contextlib.suppress(MmflaxError):
            store.wait()


def _due(step: int, every: int | None) -> bool:
    return every is not None and every > 0 and step % every == 0
