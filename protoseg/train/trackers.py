"""Trackers beside ``metrics.jsonl``: the same numbers, settings, pictures and best checkpoint, elsewhere.

A tracker that fails is left out with one line: it never stops a training. Whatever they write lies in the
run folder, but for Trackio, whose board shows what is in its own folder.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from protoseg.errors import ConfigError
from protoseg.files import write_text_whole
from protoseg.train.tracker_kinds import (
    PICTURE,
    Comet,
    MLflow,
    Run,
    TensorBoard,
    Tracker,
    Trackio,
    WeightsAndBiases,
)  # fmt: skip

logger = logging.getLogger("protoseg")

IDS_NAME = "trackers.json"
OWN = {
    "tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio,
    "comet_ml": Comet,
}  # fmt: skip


def require_trackers(names: Sequence[str]) -> None:
    """See that the packages of trackers are there.

    Raises:
        ConfigError: With the line that installs those that are not.
    """
    missing = []
    for name in names:
        found = importlib.util.find_spec(name)
        # a folder of that name in the working directory (wandb leaves such) is a package without a file
        if found is None or found.origin is None:
            missing.append(name)
    if missing:
        raise ConfigError(
            f"train.trackers names {', '.join(missing)}, which is not installed: pip install "
            f"{' '.join(missing).replace('_', '-')} (or leave it out of train.trackers)"
        )


class Trackers:
    """The trackers of a run that work; on all processes but the first there are none.

    Args:
        names: Trackers by name.
        run: What they are told.
        say: Shows a line of text.
    """

    def __init__(self, names: Sequence[str], run: Run, say: Callable[[str], None] = logger.warning) -> None:
        self.say, self.file = say, run.folder / IDS_NAME
        self.ids = self._read_ids() if run.step else {}
        self.working: list[Tracker] = []
        for name in dict.fromkeys(names):
            self.working.append(OWN.get(name, Tracker)(name, run, self.ids.get(name)))
        self._each("start", self._begin)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log finite numbers of a step."""
        finite = {key: float(value) for key, value in values.items() if np.isfinite(value)}
        self._each(f"step {step}", lambda tracker: tracker.numbers(finite, step))

    def picture(self, path: Path, step: int, name: str = PICTURE) -> None:
        """Log a PNG file of a step under a name that is the same at every step."""
        self._each(f"picture of step {step}", lambda tracker: tracker.picture(path, step, name))

    def close(self, best: Path | None = None) -> None:
        """Hand over the best checkpoint, if the run has finished with one, and close."""
        if best is not None:
            self._each("best checkpoint", lambda tracker: tracker.best(best))
        self._each("end", lambda tracker: tracker.end())
        self.working = []

    def _begin(self, tracker: Tracker) -> None:
        known = tracker.begin()
        if known is not None and self.ids.get(tracker.name) != known:
            self.ids[tracker.name] = known
            write_text_whole(self.file, json.dumps(self.ids, indent=2) + "\n")

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in list(self.working):
            try:
                call(tracker)
            # whatever a tracker raises (a server that is gone, a full disk, its own faults): training is
            # worth more
            except Exception as error:
                self.working.remove(tracker)
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                self.say(
                    f"warning: tracker {tracker.name}: {what}: {reason}. The run goes on without it; "
                    "metrics.jsonl has every number"
                )

    def _read_ids(self) -> dict[str, str]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in found.items()}
        except (OSError, ValueError, AttributeError):
            return {}
