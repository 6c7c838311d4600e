"""What a result was made with: versions of packages, and the commit of the code."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version

from protoseg import __version__
from protoseg.files import PROJECT_ROOT


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a result."""
    names = ["torch", "torchvision", "accelerate", "timm", "segmentation-models-pytorch", "numpy",
             "pillow"]  # fmt: skip
    found = {"protoseg": __version__}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_revision() -> str | None:
    """Commit of the project's working copy, ``-dirty`` when changed, None outside git."""
    if not (PROJECT_ROOT / ".git").exists():
        return None  # installed: a repository further up is somebody else's
    try:
        text = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return text.stdout.strip() or None
