"""Files of no content, and lists of them, for tests of what is found and read."""

from __future__ import annotations

from pathlib import Path

from protoseg.config.data import DataConfig


def touch(root: Path, *names: str) -> None:
    """Files below ``root``; their folders are made."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def files_config(root: Path, **keys: object) -> DataConfig:
    """Data of two classes in lists below ``root``."""
    base = {"kind": "files", "root": str(root), "classes": ["a", "b"], "labeled": "l.txt", "val": "l.txt"}
    return DataConfig.model_validate({**base, **keys})


def pool_list(folder: Path) -> Path:
    """A list, with Windows line ends and a missing image, in a folder beside that of its images."""
    touch(folder, *(f"images/{name}.png" for name in ("a", "b", "c d")))
    path = folder / "lists" / "pool.txt"
    path.parent.mkdir()
    path.write_text("images/a.png masks/a.png\r\nimages/gone.png\n\nimages/c d.png")
    return path
