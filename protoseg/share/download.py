"""A model of a hub as a local folder. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from protoseg.manifest import MANIFEST_NAME
from protoseg.share.address import HubAddress
from protoseg.share.hub import HubError, client, endpoint, hub_errors

# what is fetched, and nothing else: none of these formats can run code when it is read (.npz without pickles)
_PATTERNS = {
    "checkpoint": ["checkpoint/config.json", "checkpoint/*.safetensors"],
    "bundle": [
        f"bundle/{name}"
        for name in (MANIFEST_NAME, "*.onnx", "samples/*.png", "samples/*.npz", "prototypes/*")
    ],
}
_STUDENT = "*student.safetensors"


def download(
    address: HubAddress,
    only: Sequence[str] = ("checkpoint", "bundle"),
    *,
    student: bool = False,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Fetch the checkpoint or the bundle of a repository into huggingface_hub's cache.

    What is there already is not fetched again. Hashes are compared when the folder is opened.

    Args:
        address: Repository and revision.
        only: ``checkpoint``, ``bundle``, or both: then the first that there is.
        student: Fetch the student's weights too.
        token: Access token; None takes ``HF_TOKEN``, else what ``hf auth login`` stored.
        cache_dir: Cache; None takes huggingface_hub's own (``HF_HUB_CACHE``).
        force_download: Fetch what is there, too.
        local_files_only: Ask no hub, as with ``HF_HUB_OFFLINE=1``.

    Returns:
        A folder as a run folder, with ``checkpoint`` or ``bundle`` in it.

    Raises:
        HubError: If the repository cannot be had, or is no model of protoseg.
    """
    for kind in only:
        with hub_errors(address, "load"):
            found = client().snapshot_download(
                address.repo, revision=address.revision, endpoint=endpoint(),
                token=token, cache_dir=cache_dir, force_download=force_download,
                local_files_only=local_files_only, allow_patterns=_PATTERNS[kind],
                ignore_patterns=None if student else [_STUDENT], library_name="protoseg",
            )  # fmt: skip
        if (Path(found) / kind).is_dir():
            return Path(found)
    raise HubError(
        f"{address} is no model of protoseg that can be loaded: it has no folder {' or '.join(only)}"
    )
