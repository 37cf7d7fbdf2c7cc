"""The steps in a checkpoint directory: complete, undamaged, best, and what is kept."""

import logging
import math
import re
from collections.abc import Mapping

from etils import epath

from mmflax.checkpoints import checksums
from mmflax.errors import MmflaxError

_log = logging.getLogger("mmflax")


class Steps:
    """Lists and removes ``<directory>/<step>/``, whatever a step holds."""

    def __init__(
        self,
        directory: str,
        keep_last: int,
        keep_best: int,
        best_metric: str | None,
        best_mode: str,
    ):
        if keep_last < 1 or keep_best < 0 or best_mode not in ("max", "min"):
            raise MmflaxError(
                f"checkpoints: found keep_last={keep_last}, keep_best={keep_best}, "
                f"best_mode={best_mode!r}; expected at least 1, at least 0, and 'max' or 'min'"
            )
        if keep_best and not best_metric:
            raise MmflaxError("checkpoints: keep_best needs best_metric, such as 'val/accuracy'")
        self.directory = epath.Path(directory).absolute()
        self.keep_last, self.keep_best = keep_last, keep_best
        self.best_metric, self.best_mode = best_metric, best_mode
        self.problems: list[str] = []
        self._damaged: set[int] = set()

    def steps(self) -> list[int]:
        """Complete steps, oldest first; damage shows only when one is verified."""
        return [step for step in self._directories() if checksums.is_complete(self.path(step))]

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics saved with a step."""
        return dict(checksums.read(self.path(step))["metrics"])

    def best_step(self) -> int | None:
        """The step with the best ``best_metric``, or None."""
        ranked = self._ranked()
        return ranked[0] if ranked else None

    def best_or_newest(self) -> int:
        """The best undamaged step where ``best_metric`` ranks them, else the newest."""
        best = self.best_step() if self.best_metric else None
        return best if best is not None and self.verify(best) is None else self.newest_whole()

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics would rank among the kept best."""
        value = metrics.get(self.best_metric or "")
        if not self.keep_best or value is None:
            return False
        ranked = self._ranked()
        if len(ranked) < self.keep_best:
            return True
        worst = self.metrics(ranked[self.keep_best - 1])[str(self.best_metric)]
        return self._rank(value) < self._rank(worst)

    def verify(self, step: int) -> str | None:
        """What is damaged in a step, or None."""
        return checksums.verify(self.path(step))

    def path(self, step: int) -> epath.Path:
        """The directory of a step."""
        return self.directory / str(step)

    def _directories(self) -> list[int]:
        if not self.directory.is_dir():
            return []
        names = [path.name for path in self.directory.iterdir()]
        return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))

    def _rank(self, value: float) -> float:
        return -value if self.best_mode == "max" else value

    def _ranked(self) -> list[int]:
        """Steps with a finite ``best_metric``, best first; of equals the newer first."""
        ranked = []
        for step in self.steps():
            try:
                value = self.metrics(step).get(self.best_metric or "")
            except (ValueError, OSError):
                continue
            if value is not None and math.isfinite(value):
                ranked.append((self._rank(value), -step))
        return [-step for _, step in sorted(ranked)]

    def retain(self, newest: int) -> None:
        """Remove steps that are neither among the last, nor the best, nor ``newest``."""
        steps = self.steps()
        keep = {newest, *steps[-self.keep_last :], *self._ranked()[: self.keep_best]}
        for step in steps:
            if step not in keep:
                checksums.remove(self.path(step))

    def clear(self, step: int) -> None:
        """Before writing ``step``: remove incomplete steps, and rename damaged ones."""
        for path in self.directory.iterdir():
            if ".orbax-checkpoint-tmp" in path.name:
                path.rmtree()
        complete = set(self.steps())
        for other in self._directories():
            if other not in complete or other == step:
                checksums.remove(self.path(other))
            elif other in self._damaged:
                aside = self.directory / f"{other}.damaged"
                if aside.exists():
                    aside.rmtree()
                self.path(other).rename(aside)
        self._damaged.clear()

    def checked(self, step: int) -> int:
        """The step, or an error if it is missing or damaged."""
        if step not in self.steps():
            raise MmflaxError(
                f"no checkpoint of step {step} in {self.directory}: found "
                f"{', '.join(map(str, self.steps())) or 'none'}"
            )
        problem = self.verify(step)
        if problem:
            raise MmflaxError(
                f"checkpoint {self.path(step)} is damaged: {problem}; restore another step"
            )
        return step

    def newest_whole(self) -> int:
        """The newest undamaged step; damaged ones go into ``problems`` and the log."""
        for step in reversed(self.steps()):
            problem = self.verify(step)
            if problem is None:
                return step
            self._damaged.add(step)
            sentence = f"checkpoint {self.path(step)} is damaged: {problem}; trying the one before"
            if sentence not in self.problems:
                self.problems.append(sentence)
                _log.warning(sentence)
        damaged = f" ({len(self._damaged)} damaged)" if self._damaged else ""
        raise MmflaxError(f"no checkpoint to restore in {self.directory}{damaged}")
