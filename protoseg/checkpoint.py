"""The checkpoint folder: the only file that knows its names and keys.

``model.safetensors`` holds the teacher with both heads and the prototypes, ``student.safetensors`` the
student's network, ``config.json`` everything that is needed to build and use them. Folders appear whole
or not at all, and the previous one stays until the new one is in place.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from protoseg.config.data import DataConfig
from protoseg.config.method import PrototypeConfig
from protoseg.config.model import ModelConfig
from protoseg.config.training import EvalConfig
from protoseg.errors import CheckpointError
from protoseg.files import PREVIOUS_SUFFIX, sha256_file, write_whole
from protoseg.input_rule import InputRule
from protoseg.manifest import MANIFEST_NAME, Adaptation, ClassInfo, Head
from protoseg.models.novelty import NoveltyHead, NoveltyScale
from protoseg.models.segmenter import STAGE_HEADS, Segmenter, build_segmenter
from protoseg.records import Record, explain_validation
from protoseg.weights import plain_state, read_tensors, write_failure, writing

logger = logging.getLogger(__name__)
CHECKPOINT_SCHEMA = 1
CHECKPOINT_DIR = "checkpoint"
BEST_DIR = "best"
WEIGHTS_NAME = "model.safetensors"
STUDENT_NAME = "student.safetensors"
INFO_NAME = "config.json"
NOVELTY_NAME = "novelty.safetensors"
_NOVELTY_KEY = "novelty"


class NoveltyInfo(Record):
    """What ``novelty.safetensors`` was fitted to, kept in its header."""

    weights_sha256: str
    """Hash of the ``model.safetensors`` whose features were seen: it fits no other."""
    labeled_images: int
    """Labelled images behind the distances."""
    val_images: int
    """Labelled validation images behind scale and threshold."""
    data_hashes: dict[str, str]
    """SHA-256 of both lists."""
    false_alarms: float
    """Share of validation pixels above the threshold, as it was asked for."""
    scale: NoveltyScale
    """What turns distances and energies into a score."""


class CheckpointInfo(Record):
    """``config.json``: how to build, feed and describe the network."""

    schema_version: int = CHECKPOINT_SCHEMA
    """Version of this contract."""
    name: str
    """Name of the run."""
    step: int
    """Optimiser steps behind the weights."""
    model: ModelConfig
    """Network; ``pretrained`` is what training started from and is not loaded again."""
    prototypes: PrototypeConfig
    """Prototype head."""
    classes: list[ClassInfo]
    """Classes by id."""
    ignore_index: int
    """Mask value that is not counted."""
    input: InputRule
    """Preprocessing."""
    data: DataConfig
    """Where the training data was, for calibration and evaluation."""
    eval: EvalConfig
    """How validation images went through the network."""
    data_hashes: dict[str, str]
    """SHA-256 of the sorted stems of each list."""
    metrics: dict[str, Any]
    """Validation metrics at ``step``."""
    method: str
    """Name of the method preset."""
    teacher: dict[str, Any] | None = None
    """What labelled in place of the moving average: ``from``, ``sha256``, and what was found on labelled
    images, ``temperature`` by class and ``threshold``; None: nothing did."""
    adapted: list[Adaptation] | None = None
    """Changes of the classes since the training, the first one first; None: none."""
    weights_sha256: str
    """Hash of ``model.safetensors``."""
    versions: dict[str, str]
    """Versions of the packages used."""
    git_revision: str | None
    """Revision of the working copy, with ``-dirty`` when it had changes."""

    def best_head(self) -> Head:
        """The head with the highest validation mIoU.

        When none was measured: what it was before the classes were changed, else ``linear``.
        """
        miou = (self.metrics.get("val") or {}).get("miou") or {}
        best: Head = "linear"
        if not miou and self.adapted:
            return self.adapted[-1].head
        for head in ("fused", "prototype"):
            if (miou.get(head) or 0.0) > (miou.get(best) or 0.0):
                best = head
        return best


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint."""

    segmenter: Segmenter
    """Teacher (or student) with both heads, in eval mode on the CPU."""
    info: CheckpointInfo
    """Its description."""
    path: Path
    """The checkpoint folder."""


def _weights(segmenter: Segmenter) -> dict[str, Tensor]:
    bank = segmenter.bank
    state = {
        key: value.detach().cpu().contiguous()
        for key, value in plain_state(segmenter.network).items()
        if not key.startswith("aux_head.")
    }
    state["prototypes.prototypes"] = bank.prototypes.detach().cpu().contiguous()
    state["prototypes.active"] = bank.active.cpu().to(dtype=bank.prototypes.dtype)
    return state


def save_checkpoint(
    folder: Path, segmenter: Segmenter, info: CheckpointInfo, student: nn.Module | None = None
) -> None:
    """Write a checkpoint folder, whole or not at all.

    Args:
        folder: Target; an existing one is replaced once the new one is complete.
        segmenter: Teacher network and prototypes.
        info: Description; its ``weights_sha256`` is filled in here.
        student: Student network, kept beside the teacher for comparison.

    Raises:
        CheckpointError: If it cannot be written; what was there before is unchanged.
    """
    with writing(folder) as partial:
        safetensors.torch.save_file(_weights(segmenter), partial / WEIGHTS_NAME)
        if student is not None:
            state = {k: v.detach().cpu().contiguous() for k, v in plain_state(student).items()
                     if not k.startswith("aux_head.")}  # fmt: skip
            safetensors.torch.save_file(state, partial / STUDENT_NAME)
        complete = info.model_copy(update={"weights_sha256": sha256_file(partial / WEIGHTS_NAME)})
        (partial / INFO_NAME).write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")


def resolve_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder behind a run folder, a checkpoint folder, or one of its files.

    Raises:
        CheckpointError: If there is none.
    """
    given = Path(path).expanduser()
    candidates = [given, given / CHECKPOINT_DIR]
    if given.name in (WEIGHTS_NAME, STUDENT_NAME, INFO_NAME):
        candidates = [given.parent]
    # a crash between the two renames of a save leaves only the previous folder
    candidates += [c.with_name(c.name + PREVIOUS_SUFFIX) for c in candidates]
    for candidate in candidates:
        if (candidate / INFO_NAME).is_file() and (candidate / WEIGHTS_NAME).is_file():
            return candidate
    if (given / MANIFEST_NAME).is_file():
        raise CheckpointError(
            f"{path} is a bundle, and this needs the checkpoint that it was exported from: name its run "
            f"folder; a bundle's masks of images: protoseg predict {path} IMAGES -o OUT"
        )
    raise CheckpointError(
        f"no checkpoint at {path}: expected a run folder, or a folder with {WEIGHTS_NAME} and "
        f"{INFO_NAME}; train one with: accelerate launch --quiet -m protoseg.train"
    )


def read_info(folder: Path) -> CheckpointInfo:
    """Read ``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: If it is damaged or of another schema version.
    """
    path = folder / INFO_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    found = raw.get("schema_version") if isinstance(raw, dict) else None
    if found != CHECKPOINT_SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {found!r}, this protoseg reads {CHECKPOINT_SCHEMA}; "
            "use the protoseg version that wrote it, or train again"
        )
    try:
        return CheckpointInfo.model_validate(raw)
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint description ({explain_validation(error)}); "
            "it may come from another version of protoseg"
        ) from error


def described_tensors(weights: Path, info: CheckpointInfo) -> dict[str, Tensor]:
    """Tensors of a weight file that is the one its description was written for."""
    digest = sha256_file(weights)
    if digest != info.weights_sha256:
        raise CheckpointError(
            f"{weights} does not match its description (hash {digest[:12]}, expected "
            f"{info.weights_sha256[:12]}): the file was changed or cut short"
        )
    return read_tensors(weights)


def load_checkpoint(path: str | Path, *, student: bool = False) -> Checkpoint:
    """Build the network of a checkpoint and load its weights, on the CPU in eval mode.

    Args:
        path: Run folder, checkpoint folder or a file in it.
        student: Take the student's network instead of the teacher's (the prototypes are shared).

    Raises:
        CheckpointError: If it is missing, damaged, foreign, or its weights do not match.
    """
    folder = resolve_checkpoint(path)
    info = read_info(folder)
    weights = folder / WEIGHTS_NAME
    state = described_tensors(weights, info)
    model = info.model.model_copy(update={"pretrained": "none", "aux_weight": 0.0})
    segmenter = build_segmenter(
        model, info.prototypes, num_classes=len(info.classes), in_channels=info.input.channels,
        mean=info.input.mean, std=info.input.std,
    )  # fmt: skip
    try:
        bank = segmenter.bank
        bank.prototypes.copy_(state.pop("prototypes.prototypes"))
        bank.active.copy_(state.pop("prototypes.active") > 0)
        network = read_tensors(folder / STUDENT_NAME) if student else state
        if any(key.startswith(STAGE_HEADS) for key in network):
            segmenter.network.use_stages()
        segmenter.network.load_state_dict(network)
    except (KeyError, RuntimeError) as error:
        text = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{weights} does not fit the network it describes: {text}") from error
    if not student and (folder / NOVELTY_NAME).is_file():
        _use_novelty(segmenter, folder, info)
    return Checkpoint(segmenter.eval(), info, folder)


def save_novelty(folder: Path, head: NoveltyHead, info: NoveltyInfo) -> Path:
    """Write what novelty needs beside a checkpoint's weights, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written; what was there before is unchanged.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in head.state_dict().items()}
    path = folder / NOVELTY_NAME
    header = {_NOVELTY_KEY: info.model_dump_json()}
    try:
        write_whole(path, lambda beside: safetensors.torch.save_file(tensors, beside, header))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(write_failure(path, error)) from error
    return path


def read_novelty(folder: Path) -> tuple[NoveltyHead, NoveltyInfo]:
    """Read the file that ``save_novelty`` wrote.

    Raises:
        CheckpointError: If it is damaged or foreign.
    """
    path = folder / NOVELTY_NAME
    tensors = read_tensors(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            header = (file.metadata() or {})[_NOVELTY_KEY]
        found = NoveltyInfo.model_validate_json(header)
        return NoveltyHead(tensors["prototypes"], found.scale), found
    except (KeyError, ValidationError, SafetensorError) as error:
        cause = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{path} is not what `protoseg novelty` writes ({cause}); fit it again"
        ) from error


def _use_novelty(segmenter: Segmenter, folder: Path, info: CheckpointInfo) -> None:
    head, fitted = read_novelty(folder)
    if fitted.weights_sha256 == info.weights_sha256:
        segmenter.use_novelty(head)
    else:
        logger.warning(
            "%s was fitted to other weights and is left out; fit it again: protoseg novelty %s",
            folder / NOVELTY_NAME, folder,
        )  # fmt: skip
