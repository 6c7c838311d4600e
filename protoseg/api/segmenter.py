"""A checkpoint that segments images, with torch. The answers are those of ``python -m protoseg.predict``."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch

from protoseg.api.inputs import FileReader, Pixels
from protoseg.api.model import Maps, Model, Wanted
from protoseg.api.result import ModelInfo
from protoseg.checkpoint import CHECKPOINT_DIR, load_checkpoint
from protoseg.data.pictures import reading
from protoseg.errors import UserError, check_choice
from protoseg.inference import HEADS, available_heads, usable_device
from protoseg.manifest import Head
from protoseg.predict.images import predict_image
from protoseg.predict.reasons import Explainer
from protoseg.share.address import is_address, parse_address
from protoseg.share.download import download
from protoseg.share.push import prepare, send

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
        self._checkpoint, self._student = checkpoint, student
        self._explainer: Explainer | None = None
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

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **options: Any,
    ) -> Self:
        """Load a checkpoint from the Hugging Face Hub, or from a folder.

        The signature is that of ``huggingface_hub.ModelHubMixin``. The mixin itself would keep weights and
        settings a second time, in a layout of its own.

        Args:
            pretrained_model_name_or_path: ``user/name``, ``hf://user/name[@revision]``, or what the class
                takes itself, which goes first where it is there.
            revision: Branch, tag or commit; None is the main branch.
            token: Access token; None takes ``HF_TOKEN``, else what ``hf auth login`` stored.
            cache_dir: Where downloads are kept; None takes ``HF_HUB_CACHE``.
            force_download: Download what is there, too.
            local_files_only: Ask no hub.
            options: As for the class: ``head``, ``device``, ``precision``, ``student``.

        Raises:
            UserError: If it cannot be had or loaded.
        """
        named = str(pretrained_model_name_or_path)
        if not is_address(named) and Path(named).expanduser().exists():
            return cls(named, **options)
        folder = download(
            parse_address(named, revision), only=("checkpoint",), student=options.get("student", False),
            token=token, cache_dir=cache_dir, force_download=force_download,
            local_files_only=local_files_only,
        )  # fmt: skip
        return cls(folder, **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool = True,
        token: str | None = None,
        branch: str | None = None,
        license: str | None = None,  # noqa: A002
    ) -> str:
        """Upload the checkpoint it was loaded from, as ``protoseg push RUN --only checkpoint`` does.

        Args:
            repo_id: ``user/name`` or ``hf://user/name[@branch]``; a repository that is not there is made.
            commit_message: Message of the commit.
            private: Whether the repository is private. A public one is not written to unless this is false.
            token: Access token; None takes ``HF_TOKEN``, else what ``hf auth login`` stored.
            branch: Branch; None is the main one.
            license: For the card, ``apache-2.0`` say; None keeps what the card there says, else ``unknown``.

        Returns:
            Address of the commit.

        Raises:
            UserError: If it cannot be uploaded; the repository is then as it was.
        """
        # of a run its card and pictures belong to it
        folder = self.path.parent if self.path.name == CHECKPOINT_DIR else self.path
        upload = prepare(folder, parse_address(repo_id, branch), only="checkpoint", license=license)
        return send(upload, public=not private, message=commit_message, token=token)[0]

    @property
    def tells(self) -> frozenset[str]:
        """What it can tell beside labels."""
        fitted = self._network.novelty is not None
        return frozenset(("confidence", "agreement", *(["novelty"] if fitted else [])))

    @property
    def device(self) -> str:
        """What it computes on."""
        return str(self._device)

    def _check(self, wanted: Wanted) -> None:
        if wanted.novelty and self._network.novelty is None:
            if self._student:
                raise UserError("novelty is told by the teacher only; load it without student=True")
            raise UserError(
                f"{self.path} has no novelty; fit it with: protoseg novelty {self.path}; then load it again"
            )
        if wanted.explain and self._explainer is None:
            self._explainer = Explainer.of(self._checkpoint)

    def _predict(self, image: Pixels, wanted: Wanted) -> Maps:
        config = self._eval.model_copy(update={"mode": "sliding" if wanted.windows else "whole"})
        grounds = None
        try:
            found = predict_image(
                self._network, image, self.input, head=self._head, config=config, autocast=self._autocast,
                scores=wanted.scores,
            )  # fmt: skip
            if wanted.explain and self._explainer is not None:
                grounds = self._explainer.grounds(self._network, image, self.input, self._autocast)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the memory of {self.device} is full; use windows=True, or load(..., device='cpu')"
            ) from error
        return Maps(
            found.labels,
            found.confidence,
            found.label_probability,
            found.novelty if wanted.novelty else None,
            grounds,
        )

    def close(self) -> None:
        """Give the device's memory back."""
        self._network.to("meta")


def _found_device() -> str:
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type
