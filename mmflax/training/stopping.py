"""Early stopping by an evaluated metric (Prechelt 1998, "Early stopping - but when?").

The rule is Prechelt's UP in the form that Keras' ``EarlyStopping`` has: a run ends when so many
evaluations in a row brought no new best value. The parameters are not touched: checkpoints are
ranked by the same metric, so the best one is there to be used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass
class EarlyStopping:
    """Counts evaluations without a better ``metric``; its state is saved with every checkpoint.

    Attributes:
      metric: such as ``validation/accuracy``.
      mode: "max" or "min", which values are better.
      patience: evaluations in a row without a better value that end the run; None never ends it.
      perfect: a value that cannot be improved, at which the run ends at once; None knows none.
      best: the best value so far, of the evaluation at ``best_step``.
      step: of the last evaluation.
      waited: evaluations since the best.
    """

    metric: str
    mode: str = "max"
    patience: int | None = None
    perfect: float | None = None
    best: float | None = None
    best_step: int = -1
    step: int = -1
    waited: int = 0

    def update(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Takes an evaluation in; gives why the run ends at ``step``, or None if it goes on.

        An evaluation without the metric (no example counted) changes nothing; a value that is not
        finite is no better one.
        """
        value = metrics.get(self.metric)
        if value is None:
            return None
        self.step = step
        if math.isfinite(value) and (self.best is None or self._better(value, self.best)):
            self.best, self.best_step, self.waited = float(value), step, 0
        else:
            self.waited += 1
        return self.reason()

    def reason(self) -> str | None:
        """Why the run ends after the evaluations so far, or None."""
        if self.best is not None and self.perfect is not None:
            if not self._better(self.perfect, self.best):
                return f"{self.metric} is {self.best:g} at step {self.best_step}, the best there is"
        if self.patience is None or self.waited < self.patience:
            return None
        count = f"{self.waited} evaluation{'s' if self.waited > 1 else ''}"
        if self.best is None:
            return f"{self.metric} was not finite in {count}"
        return (
            f"{self.metric} did not improve in {count} since {self.best:.4f} at step "
            f"{self.best_step}"
        )

    def state(self) -> dict[str, Any]:
        """What JSON keeps of it."""
        names = ("metric", "mode", "best", "best_step", "step", "waited")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Goes on from `state`; one of another metric, or none, begins anew."""
        if state and (state["metric"], state["mode"]) == (self.metric, self.mode):
            self.best, self.best_step = state["best"], state["best_step"]
            self.step, self.waited = state["step"], state["waited"]

    def _better(self, value: float, than: float) -> bool:
        return value > than if self.mode == "max" else value < than
