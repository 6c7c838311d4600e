"""From a reference to a model: ``protoseg.load``."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from protoseg.errors import CheckpointError, UserError, check_choice
from protoseg.manifest import MANIFEST_NAME
from protoseg.share.address import is_address, parse_address

if TYPE_CHECKING:
    from protoseg.api.model import Model
    from protoseg.manifest import Head

_NETWORK_FILES = (".onnx", ".plan")
BUNDLE_DIR = "bundle"


def local_path(
    reference: str | os.PathLike[str], prefer: str = "checkpoint", *, student: bool = False
) -> Path:
    """The file or folder that a reference means: the one place that knows other than paths.

    Args:
        reference: A path, ``~`` included, or ``hf://user/name[@revision]``, which is downloaded.
        prefer: What to download of an address, ``checkpoint`` or ``bundle``.
        student: Download the student's weights too.

    Raises:
        UserError: If it is an address of another kind, it cannot be downloaded, or nothing is there.
    """
    text = os.fspath(reference)
    if is_address(text):
        from protoseg.share.download import download

        only = ("bundle",) if prefer == "bundle" else ("checkpoint", "bundle")
        return download(parse_address(text), only, student=student)
    if "://" in text:
        raise UserError(f"cannot load {text}: paths and hf://user/name are known here; download it first")
    path = Path(text).expanduser()
    if not path.exists():
        raise CheckpointError(
            f"{text} does not exist (looked in {Path.cwd()}); give a run folder, a checkpoint or a bundle"
        )
    return path


def load(
    reference: str | os.PathLike[str],
    *,
    prefer: Literal["checkpoint", "bundle"] = "checkpoint",
    head: Head | None = None,
    device: str | None = None,
    precision: str | None = None,
    student: bool = False,
    threads: int | None = None,
) -> Model:
    """Load a model that segments images.

    A bundle runs on ONNX Runtime or TensorRT, and torch is not imported; a checkpoint runs on torch.

    Args:
        reference: A checkpoint folder, a bundle folder, a ``.onnx`` or an engine in a bundle, or a run
            folder, which may hold both: then ``prefer`` decides, and what is there where there is but one.
            ``hf://user/name[@revision]`` is a run folder of the Hugging Face Hub: what is needed of it is
            downloaded once (``HF_HUB_OFFLINE=1``: not at all), and hashes are compared. Where torch is not
            installed, that is the bundle.
        prefer: For a run folder: its ``checkpoint`` (its last weights, with every head) or its ``bundle``.
        head: ``linear``, ``prototype`` or ``fused``. None takes the best on the validation images for a
            checkpoint, and what it was exported with for a bundle, which has no other.
        device: ``cpu``, ``cuda``, and for a checkpoint all that torch knows. None takes the best that works.
        precision: Of a checkpoint ``fp32`` (default), ``fp16`` or ``bf16`` (autocast); of a bundle which of
            its files: ``fp32``, ``fp16``, ``int8``, ``int8-cpu``.
        student: Of a checkpoint: the student's weights instead of the teacher's.
        threads: Of a bundle: CPU threads for one image; None takes all cores.

    Returns:
        A ``Segmenter`` (checkpoint) or a ``Bundle``.

    Raises:
        UserError: If there is nothing that can be loaded, or it has not what is asked for.
    """
    check_choice("prefer", prefer, ("checkpoint", "bundle"))
    if is_address(os.fspath(reference)) and find_spec("torch") is None:
        prefer = "bundle"  # rather than a download that nothing here can open
    path = local_path(reference, prefer, student=student)
    bundle = bundle_in(path, prefer)
    chosen: dict[str, Any] = {"head": head, "device": device}
    if precision is not None:
        chosen["precision"] = precision
    if bundle is not None and student:
        raise UserError(f"{bundle} is a bundle, which holds the teacher only; load the checkpoint")
    if bundle is None and threads is not None:
        raise UserError("threads is for bundles; for a checkpoint: torch.set_num_threads")
    try:
        if bundle is not None:
            # the service's engine room, which needs no torch: the one way up out of this package
            from serving.local import Bundle

            return Bundle(bundle, threads=threads, **chosen)
        from protoseg.api.segmenter import Segmenter

        return Segmenter(path, student=student, **chosen)
    except UserError as error:
        # the plain kind is about the options, its kinds are about the files
        if type(error) is UserError or not is_address(os.fspath(reference)):
            raise
        raise type(error)(f"{error} ({reference}; delete {path} to download it again)") from error


def bundle_in(path: Path, prefer: str) -> Path | None:
    """The bundle, or the file in it, that is meant; None for a checkpoint."""
    if path.is_file():
        return path if path.name == MANIFEST_NAME or path.suffix in _NETWORK_FILES else None
    if (path / MANIFEST_NAME).is_file():
        return path
    inside = path / BUNDLE_DIR
    if not (inside / MANIFEST_NAME).is_file():
        if prefer == "bundle":
            raise UserError(f"{path} has no bundle; make one with: python -m export.onnx {path}")
        return None
    # a copy for deployment may hold the bundle alone; torch would take seconds to say that there is no more
    only = not any(path.glob("*/*.safetensors"))
    return inside if prefer == "bundle" or only else None
