"""One shard: images in, a tar of masks out. What a worker does."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protoseg.api.load import BUNDLE_DIR, load, local_path
from protoseg.api.model import Model
from protoseg.api.result import Result
from protoseg.data.images import mask_picture
from protoseg.data.members import Member
from protoseg.distributed.plan import Item, describe_shard, read_done, shard_file, source_of
from protoseg.errors import UserError
from protoseg.files import write_text_whole, write_whole
from protoseg.manifest import MANIFEST_NAME, Head


def open_model(reference: str, head: Head | None, threads: int) -> Model:
    """The bundle of a run, or its checkpoint where there is none.

    Args:
        reference: As for ``protoseg.load``.
        head: Head that labels, or None.
        threads: CPU threads for one image.

    Raises:
        UserError: If there is nothing that can be loaded.
    """
    path = local_path(reference, "bundle")
    inside = (path / BUNDLE_DIR / MANIFEST_NAME).is_file()
    if inside or path.is_file() or (path / MANIFEST_NAME).is_file():
        return load(path, prefer="bundle", head=head, threads=threads)
    import torch

    torch.set_num_threads(threads)
    return load(path, head=head)


def segment(model: Model, item: Item) -> Result:
    """Labels of an image."""
    return model(item.read_bytes() if isinstance(item, Member) else item, scores=False)


def make_shard(
    model: Model, items: Sequence[Item], keys: Sequence[str], out: Path, shard: int
) -> dict[str, Any]:
    """Segment images; write ``KEY.png`` (class ids, palette) and ``KEY.json`` (source, shares) into a tar.

    The file is whole or not there, and the same for the same images: a worker that died, or one that was
    thought dead and is not, does no harm.

    Returns:
        What is told of it.
    """
    known = read_done(out, shard)
    if known is not None:
        return known
    path, failed = shard_file(out, shard), []

    def write(beside: Path) -> None:
        with tarfile.open(beside, "w") as tar:
            for item, key in zip(items, keys, strict=True):
                try:
                    result = segment(model, item)
                except UserError as error:
                    failed.append({"image": source_of(item), "reason": str(error)})
                    continue
                picture = io.BytesIO()
                mask_picture(result.labels, [c.color for c in result.info.classes]).save(picture, "PNG")
                shares = {area.name: round(area.fraction, 6) for area in result.classes if area.pixels}
                told = json.dumps({"image": source_of(item), "shares": shares})
                for suffix, data in ((".png", picture.getvalue()), (".json", told.encode())):
                    entry = tarfile.TarInfo(key + suffix)
                    entry.size = len(data)
                    tar.addfile(entry, io.BytesIO(data))

    write_whole(path, write, flush=True)
    told = describe_shard(path, len(items) - len(failed), failed)
    write_text_whole(path.with_suffix(".json"), json.dumps(told) + "\n")
    return told
