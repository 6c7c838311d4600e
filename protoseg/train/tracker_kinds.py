"""The kinds of trackers: accelerate's classes, with what they do not do for a run that goes on.

Its number or name there, its pictures and files, and a place in the run folder are added here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

PICTURE = "validation"
"""Name of the predictions beside their masks."""


@dataclass(frozen=True)
class Run:
    """What trackers are told of a run."""

    project: str
    """Name of the project."""
    name: str
    """Name of the run."""
    folder: Path
    """The run folder."""
    settings: Mapping[str, Any]
    """All settings by section, as plain values."""
    step: int
    """Optimiser steps done when it starts or goes on."""

    @property
    def flat(self) -> dict[str, Any]:
        """Settings as ``section.key``; what is neither number nor text becomes JSON."""
        return dict(_flatten(self.settings, ""))


def _flatten(values: Mapping[str, Any], above: str) -> list[tuple[str, Any]]:
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found += _flatten(value, f"{above}{key}.")
        else:
            plain = value if isinstance(value, bool | int | float | str) else json.dumps(value)
            found.append((f"{above}{key}", plain))
    return found


class Tracker:
    """One tracker: numbers and settings through accelerate's class, and nothing else.

    Args:
        name: What accelerate calls it.
        run: What it is told.
        known: What it called this run when that was started; None at the start.
    """

    def __init__(self, name: str, run: Run, known: str | None) -> None:
        self.name, self.run, self.known = name, run, known
        self.inner: Any = None

    def begin(self) -> str | None:
        """Start, or go on with, the tracker's run; its number or name there."""
        folder = str(self.run.folder / self.name)
        place = {"dvclive": {"dir": folder}, "swanlab": {"logdir": folder}}.get(self.name, {})
        self.open(self.run.project, **({"logging_dir": folder} if self.name == "aim" else place))
        self.inner.store_init_configuration(self.run.flat)
        return None

    def open(self, *arguments: Any, **settings: Any) -> None:
        """Make and start accelerate's tracker."""
        self.inner = LOGGER_TYPE_TO_CLASS[self.name](*arguments, **settings)
        self.inner.start()

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Log numbers of a step."""
        self.inner.log(values, step=step)

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""

    def best(self, folder: Path) -> None:
        """Keep a checkpoint folder."""

    def end(self) -> None:
        """Write what is left and close."""
        self.inner.finish()


class TensorBoard(Tracker):
    """Event files in ``tensorboard/``; they have no place for checkpoints."""

    def begin(self) -> str | None:
        """What an interrupted run had logged after the step that it goes on from is dropped."""
        from torch.utils.tensorboard.summary import hparams

        purge = self.run.step + 1 if self.run.step else None
        self.open("tensorboard", str(self.run.folder), purge_step=purge)
        text = yaml.safe_dump(dict(self.run.settings), sort_keys=False, allow_unicode=True)
        self.inner.writer.add_text("settings", "    " + text.replace("\n", "\n    "), self.run.step)
        # the writer's own add_hparams opens a second run beside this one
        make: Any = hparams
        for summary in make(self.run.flat, {"val/miou_linear": 0, "val/miou_fused": 0}):
            self.inner.writer.file_writer.add_summary(summary)
        return None

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self.inner.writer.add_image(name, pixels, step, dataformats="HWC")


class WeightsAndBiases(Tracker):
    """``wandb/`` in the run folder; offline with ``WANDB_MODE=offline``."""

    def begin(self) -> str | None:
        """The run goes on under its number."""
        run = self.run
        self.open(
            run.project, name=run.name, id=self.known, resume="allow", dir=str(run.folder),
            config=dict(run.settings),
        )  # fmt: skip
        return str(self.inner.run.id)

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""
        import wandb

        self.inner.log({name: wandb.Image(str(path))}, step=step)

    def best(self, folder: Path) -> None:
        """Keep a checkpoint folder as an artifact of type ``model``."""
        import wandb

        artifact = wandb.Artifact(f"{self.run.name}-best", type="model")
        artifact.add_dir(str(folder))
        self.inner.run.log_artifact(artifact, aliases=["best"])


class MLflow(Tracker):
    """The server of ``MLFLOW_TRACKING_URI``; without one a SQLite file in ``mlflow/``."""

    def begin(self) -> str | None:
        """The run goes on under its number; parameters, which never change there, are those of its start."""
        import mlflow

        place = None
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        # its client tries for minutes by default, and the training would wait
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            folder = (self.run.folder / "mlflow").resolve()
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
            place = (folder / "artifacts").as_uri()
        self.open(self.run.project, place, run_id=self.known, run_name=self.run.name)
        if self.known is None:
            self.inner.store_init_configuration(self.run.flat)
        mlflow.log_artifact(str(self.run.folder / "config.yaml"))
        return str(self.inner.active_run.info.run_id)

    def numbers(self, values: dict[str, float], step: int) -> None:
        """Log numbers of a step, under the names that MLflow admits."""
        self.inner.log({re.sub(r"[^\w\-. :/]", "_", key): v for key, v in values.items()}, step=step)

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""
        self.inner.log_artifact(str(path), "pictures")

    def best(self, folder: Path) -> None:
        """Keep a checkpoint folder."""
        self.inner.log_artifacts(str(folder), "best")


class Trackio(Tracker):
    """Trackio's own folder (``TRACKIO_DIR``), where ``trackio show`` finds it."""

    def begin(self) -> str | None:
        """The run goes on under its name."""
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it does
            self.open(
                self.run.project, name=self.known or self.run.name, config=self.run.flat,
                resume="never" if self.known is None else "allow",
            )  # fmt: skip
        return str(self.inner.run.name)

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""
        import trackio

        self.inner.log({name: trackio.Image(str(path))}, step=step)

    def best(self, folder: Path) -> None:
        """Keep a checkpoint folder as an artifact of type ``model``."""
        self.inner.run.log_artifact(str(folder), name=f"{self.run.name}-best", type="model", aliases=["best"])

    def end(self) -> None:
        """Write what is left and close."""
        import trackio

        with contextlib.redirect_stdout(sys.stderr):
            trackio.finish()  # the run's own finish, which accelerate calls, comes a second time at exit


class Comet(Tracker):
    """Comet's server if there is an API key, else archives in ``comet/``."""

    def begin(self) -> str | None:
        """The experiment goes on under its key."""
        import comet_ml

        logging.getLogger("urllib3").setLevel(logging.ERROR)  # its reports of faults try again and again
        folder = self.run.folder / "comet"
        folder.mkdir(exist_ok=True)
        self.open(
            self.run.project, experiment_key=self.known, mode="create" if self.known is None else "get",
            online=bool(comet_ml.get_config("comet.api_key")),
            experiment_config=comet_ml.ExperimentConfig(
                name=self.run.name, offline_directory=str(folder), display_summary_level=0, parse_args=False,
                auto_output_logging=False, auto_metric_logging=False,
            ),
        )  # fmt: skip
        self.inner.store_init_configuration(self.run.flat)
        return str(self.inner.writer.get_key())

    def picture(self, path: Path, step: int, name: str) -> None:
        """Log a PNG file."""
        self.inner.writer.log_image(str(path), name=name, step=step)

    def best(self, folder: Path) -> None:
        """Keep a checkpoint folder as a model."""
        self.inner.writer.log_model(f"{self.run.name}-best", str(folder))
