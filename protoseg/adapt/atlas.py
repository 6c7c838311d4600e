"""The atlas of a changed network: that of the network before, with patches of the images that were given."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from protoseg.adapt.adapt import Adapted
from protoseg.checkpoint import CHECKPOINT_DIR, Checkpoint, read_info
from protoseg.explain.atlas import ATLAS_DIR, Atlas, Prototype, fitting_atlas, read_thumbnails
from protoseg.explain.make import atlas_folder, save_atlas
from protoseg.explain.search import find_patches

Thumbnails = dict[str, list[Image.Image]]


def carried_atlas(out: Path, source: Checkpoint, found: Adapted) -> Path | None:
    """Write the atlas of a changed network beside it.

    Prototypes that stayed keep their patches. Those of the class that was added or mended get patches of the
    images that were given: those of the training are not labelled with it.

    Args:
        out: Its run folder, where its checkpoint is.
        source: The network as it was.
        found: What was changed.

    Returns:
        The folder; None where the network before has no atlas, or classes were merged: their prototypes are
        others now, and images of the training show what they stand for.
    """
    place, bank = atlas_folder(source.path), found.checkpoint.segmenter.bank
    before = fitting_atlas(place, source.info.weights_sha256)
    if before is None or found.merged:
        return None
    entries, thumbnails, images = list[Prototype](), Thumbnails(), before.num_images
    old, new, count = source.segmenter.bank.prototypes.cpu(), bank.prototypes.cpu(), bank.num_prototypes
    info = read_info(out / CHECKPOINT_DIR)
    names = {before.classes[was]: info.classes[label].name for label, was in enumerate(found.kept)
             if was < len(before.classes)}  # fmt: skip
    for item in before.prototypes:
        label = found.kept.index(item.class_id) if item.class_id in found.kept else None
        if label is None or not torch.equal(old[item.class_id, item.number], new[label, item.number]):
            continue
        index = label * count + item.number
        patches = [patch.model_copy(update={"label": names.get(patch.label or "")}) for patch in item.patches]
        update = {"index": index, "class_id": label, "strip": f"{index:04d}.jpg", "patches": patches}
        entries.append(item.model_copy(update=update))
        thumbnails[entries[-1].strip] = read_thumbnails(place, before, item.index)
    if found.given_source is not None:
        seen, images = found.given_source, images + len(found.given_source)
        own = find_patches(found.checkpoint.segmenter, info, seen, num_images=len(seen), patch=before.patch)
        there = {item.index for item in entries}
        for item in own.atlas.prototypes:
            if item.class_id == found.label and item.index not in there:
                entries.append(item)
                thumbnails[item.strip] = own.thumbnails[item.strip]
    atlas = Atlas(
        name=info.name, step=info.step, weights_sha256=info.weights_sha256,
        classes=[item.name for item in info.classes], num_prototypes=count, num_images=images,
        patch=before.patch, side=before.side, prototypes=sorted(entries, key=lambda item: item.index),
    )  # fmt: skip
    save_atlas(out / ATLAS_DIR, atlas, thumbnails, info.classes)
    return out / ATLAS_DIR
