"""Verified checkpoints: Orbax writes the arrays, SHA-256 checksums detect damage.

A step is the directory ``<dir>/<step>/``. Orbax writes it in the background and renames it into
place; then process 0 adds one file, atomically, with checksums of the others, the table of arrays
and the metrics. Without that file a step is incomplete and ignored, so a run killed at any moment
leaves the newest complete step; older ones are removed only after it. Checksums are verified before
a restore, because a flipped bit in an Orbax file restores wrong numbers without an error.
"""

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from mmflax import paths
from mmflax.checkpoints import checksums, trees
from mmflax.checkpoints.steps import Steps
from mmflax.errors import MmflaxError


class Store(Steps):
    """The checkpoints of one run in one directory; call every method in every process.

    Args:
      keep_last: how many newest steps stay.
      keep_best: how many more stay for their ``best_metric`` (none without such a metric).
      best_mode: "max" or "min".

    Attributes:
      problems: one sentence for every damaged step met so far.
    """

    def __init__(
        self,
        directory: str,
        *,
        keep_last: int = 3,
        keep_best: int = 0,
        best_metric: str | None = None,
        best_mode: str = "max",
    ):
        super().__init__(directory, keep_last, keep_best, best_metric, best_mode)
        self._checkpointer: ocp.AsyncCheckpointer | None = None
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saving: int | None = None

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics would rank among the kept best."""
        if self.keep_best:
            self.wait()  # every process must see the same steps
        return super().improves(metrics)

    def save(
        self,
        step: int,
        state: Any,
        data: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start saving; returns once the state may be changed or donated.

        Args:
          state: any tree of arrays; typed PRNG keys are allowed.
          data: what JSON can hold, such as ``{"position": step}``.
          metrics: kept with the step and ranked by ``best_metric``.

        Raises:
          MmflaxError: if this save, or the one before it, could not be written.
        """
        self.wait()
        tree = {name: trees.to_key_data(leaf) for name, leaf in paths.leaves(state).items()}
        content = {
            "step": step,
            "metrics": dict(metrics or {}),
            "arrays": trees.table(tree),
        }
        try:
            if self._checkpointer is None:
                self._checkpointer = _checkpointer()
            if jax.process_index() == 0:
                self.directory.mkdir(parents=True, exist_ok=True)
                self.clear(step)
            self._checkpointer.save(
                self.path(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(paths.nested(tree)),
                    data=ocp.args.JsonSave(dict(data)),
                ),
                force=True,
            )
        except Exception as error:
            raise self._unwritten(step, error) from error
        self._saving = step
        self._thread = threading.Thread(target=self._finish, args=(step, content), name="checksums")
        self._thread.start()

    def rate(self, step: int, metrics: Mapping[str, float]) -> None:
        """Give a saved step the metrics of an evaluation that came later."""
        self.wait()
        if jax.process_index() == 0:
            checksums.amend(self.path(step), metrics=dict(metrics))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"mmflax-rated-{step}")

    def wait(self) -> None:
        """Block until the save in progress is complete in every process; raise if it failed."""
        step = self._join()
        if step is not None and jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"mmflax-saved-{step}")

    def close(self) -> None:
        """End the save in progress and release the writer; may be called by one process alone."""
        self._join()
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _join(self) -> int | None:
        """The step whose save ended, or None; raises if it failed."""
        if self._thread is None:
            return None
        self._thread.join()
        step, error = self._saving, self._error
        self._thread = self._error = self._saving = None
        if error is not None:
            assert step is not None
            raise self._unwritten(step, error) from error
        return step

    def restore(
        self,
        abstract: Any,
        step: int | None = None,
        *,
        best: bool = False,
        partial: bool = False,
    ) -> tuple[Any, dict[str, Any], int]:
        """(state, data, step), placed by the shardings in ``abstract``.

        Args:
          abstract: tree of ``ShapeDtypeStruct`` with shardings, or of arrays.
          step: by default the newest undamaged one; damaged ones are named in ``problems`` and the
            log.
          best: without a step, the best one where ``best_metric`` ranks them.
          partial: ``abstract`` may be a part of what was saved, such as ``{"params": ...}``.

        Raises:
          MmflaxError: nothing whole to restore, or the tree differs (says where and how).
        """
        newest = self.best_or_newest if best else self.newest_whole
        step = self._agree(newest if step is None else functools.partial(self.checked, step))
        wanted = paths.leaves(abstract)
        self._compare(step, wanted, partial)
        targets = paths.nested({name: trees.target(leaf) for name, leaf in wanted.items()})
        checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        _quiet()
        with checkpointer:
            restored = checkpointer.restore(
                self.path(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeRestore(
                        targets,
                        restore_args=ocp.checkpoint_utils.construct_restore_args(targets),
                        partial_restore=True,
                    ),
                    data=ocp.args.JsonRestore(),
                ),
            )
        arrays = paths.leaves(restored.state)
        leaves = [trees.from_key_data(arrays[name], leaf) for name, leaf in wanted.items()]
        return jax.tree.unflatten(jax.tree.structure(abstract), leaves), dict(restored.data), step

    def _finish(self, step: int, content: dict[str, Any]) -> None:
        try:
            assert self._checkpointer is not None
            self._checkpointer.wait_until_finished()
            if jax.process_index() == 0:
                checksums.write(self.path(step), content)
                self.retain(step)
        except BaseException as error:  # raised again by wait(), in the caller's thread
            self._error = error

    def _agree(self, choose: Callable[[], int]) -> int:
        """The step that process 0 chooses: two processes must never restore different steps."""
        if jax.process_count() == 1:
            return choose()
        error, step = None, -1
        if jax.process_index() == 0:
            try:
                step = choose()
            except MmflaxError as problem:
                error = problem
        step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
        if step < 0:
            raise error or MmflaxError(f"process 0 could not restore from {self.directory}")
        return step

    def _compare(self, step: int, wanted: dict[str, Any], partial: bool) -> None:
        lines = trees.differences(checksums.read(self.path(step))["arrays"], wanted, partial)
        if lines:
            more = f"; and {len(lines) - 8} more" if len(lines) > 8 else ""
            raise MmflaxError(
                f"checkpoint {self.path(step)} does not fit the config: {'; '.join(lines[:8])}"
                f"{more}; use the config that it was trained with, or another workdir"
            )

    def _unwritten(self, step: int, error: BaseException) -> MmflaxError:
        try:
            steps = self.steps()
        except OSError:
            steps = []
        last = f"step {steps[-1]} is the last good checkpoint" if steps else "none is complete yet"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        return MmflaxError(
            f"could not write checkpoint {self.path(step)}: {reason}; {last}; check free space "
            "and permissions, then run the same command again"
        )


def _quiet() -> None:
    """Silence Orbax, which logs every action and error traces; our errors are one sentence."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _checkpointer() -> ocp.AsyncCheckpointer:
    _quiet()
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
