"""Where the shards of ``data.root`` are, and what names some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protoseg.config.data import DataConfig
from protoseg.data.names import IMAGE_SUFFIXES
from protoseg.data.storage import expand_text, is_url
from protoseg.errors import DataError

SHARD_SUFFIXES = (".tar", ".parquet")
_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True)
class Root:
    """Where the shards of ``data.root`` are."""

    folder: str
    """Path or URL."""
    own: tuple[str, ...]
    """Patterns of all its shards."""


def names_shards(text: object) -> bool:
    """Whether a setting is a pattern of shards.

    Raises:
        DataError: If it names packed ones, in which nothing can be found by its place.
    """
    if not isinstance(text, str):
        return False
    if text.lower().endswith(_PACKED):
        raise DataError(
            f"{text} is packed, so that no image can be read by itself; unpack it to .tar (gunzip, zstd -d)"
        )
    return text.lower().endswith(SHARD_SUFFIXES)


def shard_root(config: DataConfig) -> Root | None:
    """Where shards are, or None where ``data.root`` is a folder of images.

    A folder is one of shards where a role names some, or where it holds shards, no images and no folders.
    """
    if config.kind != "files":
        return None
    root = expand_text(config.root).rstrip("/") or "/"
    place = root if is_url(root) else str(Path(root).absolute())
    if names_shards(root):
        return Root(place.rpartition("/")[0], (place,))
    everything = tuple(f"{place}/*{suffix}" for suffix in SHARD_SUFFIXES)
    roles = (config.labeled, config.unlabeled, config.val)
    if is_url(root) or any(names_shards(role) for role in roles) or _only_shards(Path(place)):
        return Root(place, everything)
    return None


def _only_shards(folder: Path) -> bool:
    found = False
    try:
        for item in folder.iterdir():
            suffix = item.suffix.lower()
            if suffix in IMAGE_SUFFIXES or (not item.name.startswith(".") and item.is_dir()):
                return False
            found = found or suffix in SHARD_SUFFIXES
    except OSError:
        return False
    return found


def absolute_root(config: DataConfig, root: Root) -> str:
    """``data.root`` as it means the same from any folder."""
    return root.own[0] if names_shards(config.root) else root.folder
