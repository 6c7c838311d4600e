"""A checkpoint that segments images, with torch. The answers are those of ``python -m protoseg.predict``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from protoseg.api.inputs import FileReader, Pixels
from protoseg.api.model import Maps, Model
from protoseg.api.result import ModelInfo
from protoseg.checkpoint import load_checkpoint
from protoseg.data.pictures import reading
from protoseg.errors import UserError, check_choice
from protoseg.inference import HEADS, available_heads, usable_device
from protoseg.manifest import Head
from protoseg.predict.images import predict_image

CheckpointPrecision = Literal["fp32", "fp16", "bf16"]
_TYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Segmenter(Model):
    """A loaded checkpoint. Use one from one thread at a time.

    Args:
        path: Run folder, checkpoint folder or a file in it.
        head: Head that labels; None takes the one with the highest validation mIoU of the checkpoint.
        device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ...; None takes the accelerator that torch finds,
            else the CPU.
        precision: Numerics of the forward pass; the weights stay float32.
        student: The student's weights instead of the teacher's.

    Raises:
        UserError: If there is no checkpoint, it is damaged, or it has not what is asked for.
    """

    kind = "checkpoint"

    def __init__(
        self,
        path: str | Path,
        *,
        head: Head | None = None,
        device: str | None = None,
        precision: CheckpointPrecision = "fp32",
        student: bool = False,
    ) -> None:
        check_choice("head", head, (*HEADS, None))
        if precision != "fp32" and precision not in _TYPES:
            raise UserError(
                f"precision of a checkpoint is fp32, fp16 or bf16, got {precision!r}; int8 needs a bundle"
            )
        where = usable_device(device or _found_device())
        checkpoint = load_checkpoint(path, student=student)
        info, self._network = checkpoint.info, checkpoint.segmenter.to(where).eval()
        self._head: Head = head or info.best_head()
        if self._head not in available_heads(self._network):
            raise UserError(
                f"head {self._head!r} needs prototypes, this checkpoint has none; use head='linear'"
            )
        self._device, self._eval = where, info.eval
        self._autocast: Callable[[], AbstractContextManager[object]] = nullcontext
        if precision != "fp32":
            self._autocast = partial(torch.autocast, where.type, dtype=_TYPES[precision])
        how = reading(info.data, info.input)
        super().__init__(
            checkpoint.path,
            ModelInfo(info.name, str(info.step), self._head, tuple(info.classes)),
            info.input, info.metrics, FileReader(info.input.channels, how), how,
        )  # fmt: skip

    @property
    def device(self) -> str:
        """What it computes on."""
        return str(self._device)

    def _predict(self, image: Pixels, *, scores: bool, windows: bool) -> Maps:
        config = self._eval.model_copy(update={"mode": "sliding" if windows else "whole"})
        try:
            found = predict_image(
                self._network, image, self.input, head=self._head, config=config, autocast=self._autocast
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory of {self.device} is full; use windows=True, or load(..., device='cpu')"
            ) from error
        if not scores:
            return Maps(found.labels, None, None)
        return Maps(found.labels, found.confidence, found.label_probability)

    def close(self) -> None:
        """Give the device's memory back."""
        self._network.to("meta")


def _found_device() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type
