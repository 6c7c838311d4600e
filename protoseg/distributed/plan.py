"""Which images become which shard of masks, and what of it is done."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from protoseg.data.find import FoundImage, find_images
from protoseg.data.members import Member
from protoseg.data.shards.entries import ShardEntries
from protoseg.data.shards.index import Rules, open_shards
from protoseg.data.shards.root import names_shards
from protoseg.data.storage import find_blobs
from protoseg.errors import DataError, UserError
from protoseg.files import sha256_file, write_text_whole

Item = FoundImage | Member
"""An image: a file that every machine sees, or one within a shard."""

PLAN, MANIFEST = "plan.json", "manifest.json"
_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """What the folder of results is made of; the same call finds the same."""

    version: int
    images: int
    """How many there are."""
    images_sha256: str
    """Hash of their names, in order."""
    shard_size: int
    """Images of a shard; the last one may have fewer."""
    model: dict[str, Any]
    """Name, version, head and class names of what segments."""

    @property
    def num_shards(self) -> int:
        """Shards in all."""
        return -(-self.images // self.shard_size)

    def part(self, shard: int) -> slice:
        """The images of a shard."""
        return slice(shard * self.shard_size, min(self.images, (shard + 1) * self.shard_size))


def shard_file(out: Path, shard: int) -> Path:
    """The masks of a shard; the ``.json`` beside it is written last and says that they are done."""
    return out / f"masks-{shard:06d}.tar"


def find_items(inputs: Sequence[str], out: Path) -> list[Item]:
    """Images named, those below folders, and those within tars and parquet files.

    Args:
        inputs: Paths of images and folders; paths, URLs and patterns (``train-{000..099}.tar``) of shards.
        out: Folder of results.

    Raises:
        DataError: If something is not there.
    """
    items: list[Item] = []
    for text in inputs:
        if names_shards(text):
            shards = open_shards(tuple(find_blobs(text)), Rules())
            rows = np.arange(len(shards.table.rows), dtype=np.int64)
            for entry in ShardEntries(shards, rows, masks=False):
                assert isinstance(entry.image, Member)
                items.append(entry.image)
        else:
            # workers may have another working directory
            items += find_images([Path(text).expanduser().resolve()], out).images
    return items


def source_of(item: Item) -> str:
    """Where an image is."""
    return str(item) if isinstance(item, Member) else str(item.path)


def keys_of(items: Sequence[Item]) -> list[str]:
    """Names of the masks: each once, without a dot, at which a key ends in a tar of samples.

    Raises:
        UserError: If two images have the same.
    """
    keys, seen = [], dict[str, Item]()
    for item in items:
        place = item.key if isinstance(item, Member) else item.place.with_suffix("").as_posix()
        path = PurePath(place)
        key = path.with_name(path.name.replace(".", "_")).as_posix()
        if key in seen:
            raise UserError(
                f"{source_of(seen[key])} and {source_of(item)} would both be {key}; give the folder "
                "above both, so that folders are part of the names"
            )
        seen[key] = item
        keys.append(key)
    return keys


def make_plan(items: Sequence[Item], keys: Sequence[str], shard_size: int, model: dict[str, Any]) -> Plan:
    """The plan of these images."""
    digest = hashlib.sha256()
    for item, key in zip(items, keys, strict=True):
        digest.update(f"{key}\t{source_of(item)}\n".encode())
    return Plan(_VERSION, len(items), digest.hexdigest(), shard_size, model)


def agree(plan: Plan, out: Path) -> None:
    """Write the plan, or see that an earlier call's is the same.

    Raises:
        UserError: If the folder holds masks of other images or of another model.
    """
    path = out / PLAN
    if path.exists():
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read ({error}); choose another folder with -o") from error
        now = asdict(plan)
        if other := [name for name in now if earlier.get(name) != now[name]]:
            told = ", ".join(name.replace("_", " ") for name in other)
            raise UserError(
                f"{out} holds masks of a call with other {told}; choose another folder with -o, or give the "
                "same images, model and --shard-size to go on with it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(path, json.dumps(asdict(plan), indent=2) + "\n")


def read_done(out: Path, shard: int) -> dict[str, Any] | None:
    """What is told of a finished shard; None where it is not finished."""
    path = shard_file(out, shard)
    try:
        told: dict[str, Any] = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return told if path.is_file() and path.stat().st_size == told["bytes"] else None


def write_manifest(plan: Plan, out: Path) -> dict[str, Any]:
    """Put together what is told of the shards.

    Raises:
        DataError: If one is missing, or images are.
    """
    shards = [read_done(out, shard) for shard in range(plan.num_shards)]
    absent = [shard for shard, told in enumerate(shards) if told is None]
    if absent:
        raise DataError(f"{len(absent)} of {plan.num_shards} shards are not there; the same call makes them")
    done = [told for told in shards if told is not None]
    counted = sum(told["images"] + len(told["failed"]) for told in done)
    if counted != plan.images:
        raise DataError(
            f"{out}: {counted} images are in the shards, {plan.images} were given; choose another folder"
        )
    manifest = {**asdict(plan), "shards": done}
    write_text_whole(out / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def describe_shard(path: Path, images: int, failed: list[dict[str, str]]) -> dict[str, Any]:
    """What is told of a shard."""
    return {
        "file": path.name, "images": images, "failed": failed, "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
    }  # fmt: skip
