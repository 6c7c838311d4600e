"""Settings of a run: optimiser, length and numerics, validation, and where results go."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from protoseg.manifest import Head
from protoseg.records import Section

TRACKERS = (
    "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "aim", "clearml", "dvclive", "swanlab",
)  # fmt: skip
"""Trackers by the names that accelerate gives them."""


class OptimConfig(Section):
    """Optimiser and schedule."""

    name: Literal["sgd", "adamw"] = "adamw"
    """SGD with Nesterov off, or AdamW."""
    lr: float = Field(2e-4, gt=0)
    """Learning rate of the encoder."""
    decoder_lr_factor: float = Field(10.0, gt=0)
    """Factor for decoder, heads and projection."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum, or AdamW's first beta."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decay of weights; biases and norm parameters are left out."""
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    """Shape of the learning rate over steps."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of ``poly``."""
    lr_warmup_steps: int = Field(0, ge=0)
    """Steps of linear rise at the start."""
    max_grad_norm: float | None = Field(None, gt=0)
    """Clip the gradient's norm; null never."""


class TrainConfig(Section):
    """Length, batch, numerics of a run."""

    max_steps: int | None = Field(None, ge=1)
    """Optimiser steps; give this or ``epochs``."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the unlabelled images (labelled ones when there are none)."""
    start_from: str | None = None
    """Run or checkpoint folder whose teacher's weights student and teacher start from: the same network and
    classes, trained before (supervised, say, until validation mIoU is flat). Prototypes and their projection
    start anew. Null: ``model.pretrained`` alone."""
    warmup_steps: int | None = Field(None, ge=0)
    """Supervised steps before the teacher is used; null: one epoch, at most a quarter of the run, and none
    with ``start_from``."""
    batch_size: int = Field(4, ge=1)
    """Labelled images, and as many unlabelled ones, for each process and micro-step."""
    accumulate: int = Field(1, ge=1)
    """Micro-steps for one optimiser step."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Largest decay of the teacher; the ramp is min(1 - 1/(t+1), ema_decay)."""
    seed: int = Field(0, ge=0)
    """Seed of weights, order, views, mixing and sampling."""
    rare_class_temperature: float | None = Field(None, gt=0)
    """Draw labelled images by class, rare ones more often: class c with probability proportional to
    exp((1 - f_c) / this), f_c its share of the labelled pixels, then an image that shows it [DAFormer, 0.01].
    Null: each image once a pass."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Null: bf16 or fp16 if ``accelerate launch`` says so, else bf16 on a CUDA device that computes it and no
    on others. The launcher's ``no`` is its default, too, and does not count: say it here."""
    channels_last: bool | None = None
    """Memory layout for convolutions on tensor cores, and for bf16 on CPUs that compute it. Null: true on a
    CUDA device that computes bf16."""
    cpu_threads: int | None = Field(None, ge=1)
    """Threads of a process that trains on a CPU; null: the cores it may use / processes on the machine,
    unless ``OMP_NUM_THREADS`` says otherwise. Another number changes the last digits of results."""
    compile: bool = False
    """torch.compile the student and the teacher."""
    sync_bn: bool = True
    """Synchronise batch norm over processes (CUDA only)."""
    tf32: bool = True
    """Allow TF32 in matrix products and convolutions on CUDA."""
    max_bad_steps: int = Field(10, ge=1)
    """Without effect: a run stops at its first loss that is not finite. Kept so that older files load."""
    log_every: int = Field(20, ge=1)
    """Steps between two log lines (the only host-device waits)."""
    eval_every: int | None = Field(None, ge=1)
    """Steps between evaluations; null: five in a run. The last step is always evaluated."""
    save_every: int | None = Field(None, ge=1)
    """Steps between resume states; null: as often as evaluations."""
    keep_states: int = Field(1, ge=0)
    """Resume states that are kept; 0 keeps one while the run lasts, and none once it has finished."""
    trackers: list[str] = Field(["tensorboard"])
    """Where numbers, settings, pictures and the best checkpoint go, too: ``tensorboard``, ``wandb``,
    ``mlflow``, ``trackio``, ``comet_ml``; ``aim``, ``clearml``, ``dvclive`` and ``swanlab`` get numbers and
    settings. An empty list for none."""
    patience: int | None = Field(None, ge=1)
    """Evaluations after the warm-up without a better ``eval.best`` until the run stops early; null never."""
    min_delta: float = Field(0.0, ge=0, lt=1)
    """How much higher than the last better one a value must be to count as better for ``patience``; mIoU in
    [0, 1]."""
    atlas_images: int = Field(128, ge=0)
    """Labelled images that are searched at the end for the patches that each prototype stands for
    (``RUN/prototypes``, as ``protoseg explain`` makes it; largest number); 0 leaves it out."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if (self.max_steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.max_steps and train.epochs")
        for name in self.trackers:
            if name not in TRACKERS:
                near = get_close_matches(name.lower(), TRACKERS, n=1, cutoff=0.5)
                meant = f" (did you mean {near[0]}?)" if near else ""
                raise ValueError(f"there is no tracker {name!r}{meant}; there are {', '.join(TRACKERS)}")
        return self


class EvalConfig(Section):
    """How validation images go through the network."""

    mode: Literal["whole", "sliding"] = "whole"
    """Whole image at the working size, or overlapping windows of ``window`` with averaged logits."""
    window: tuple[int, int] | None = None
    """Window (height, width) in pixels; null takes the training crop."""
    window_stride: float = Field(2 / 3, gt=0, le=1)
    """Step of the window as a fraction of its side."""
    batch_size: int = Field(1, ge=1)
    """Windows, or images of one size, in a forward pass."""
    best: Head = "linear"
    """Head whose validation mIoU decides which checkpoint is ``best/`` and when ``train.patience`` ends."""
    at_working_size: bool = False
    """Score at the working size (masks shrunk by nearest neighbour) instead of the mask's own."""


class RunConfig(Section):
    """Where results go."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run folder."""
    dir: str = "runs"
    """Folder of run folders."""
    project: str = Field("protoseg", min_length=1)
    """What trackers call the project, where they have such a thing (``train.trackers``)."""

    @property
    def path(self) -> Path:
        """The run folder."""
        return Path(self.dir).expanduser() / self.name
