"""The first images to label, before anything is trained: one of each cluster of an encoder's features.

Shape legend: ``N`` images, ``D`` channels of the encoder's last stage.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from protoseg.config.data import DataConfig
from protoseg.config.model import ModelConfig
from protoseg.data.find import FoundImage
from protoseg.data.images import read_image, resize_image
from protoseg.draw.tiles import Tile, draw_sheet, small
from protoseg.errors import DataError, UserError
from protoseg.inference import image_batch
from protoseg.input_rule import ResizeConfig
from protoseg.models.decoders import build_backbone
from protoseg.models.encoders import PACKAGE_MODELS, normalization
from protoseg.suggest.candidates import collect, listed_images, without
from protoseg.suggest.choice import pick_clustered
from protoseg.suggest.embedding import mean_feature
from protoseg.suggest.results import LIST_NAME, SHEET_IMAGES, SHEET_NAME, evidence, headline, write_results

WORKING_SIZE = ResizeConfig(mode="long_side", size=256)
"""Size of images that clusters were measured with."""

COLUMNS = 4


class PretrainedEncoder:
    """A convolutional encoder with the weights that it comes with.

    Args:
        name: timm's name.
        weights: ``package``, ``timm`` or a file; None takes the package of the encoders that have one.
        device: Where it runs.

    Raises:
        UserError: If it is a vision transformer, or encoder or weights cannot be had.
    """

    def __init__(self, name: str, weights: str | None, device: torch.device) -> None:
        if "vit" in name:
            raise UserError(
                "--encoder takes convolutional encoders, as tf_efficientnet_lite0; none else was measured"
            )
        self.name = name
        self.weights = weights or ("package" if name in PACKAGE_MODELS else "timm")
        model = ModelConfig(encoder=name, pretrained=self.weights, output_stride=16)
        backbone = build_backbone(model, 3)
        self.multiple, self.device = backbone.stride_multiple, device
        self.encoder: nn.Module = backbone.encoder.to(device).eval()
        mean, std = normalization(name, self.weights, 3)
        self.mean, self.std = (
            255 * torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std)
        )

    @torch.no_grad()
    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Direction of the mean feature of the last stage: (h, w, 3) uint8 -> (D,) float32 of length 1."""
        x: Tensor = (image_batch([image], self.device) - self.mean) / self.std
        height, width = image.shape[:2]
        # zero is the mean after normalisation
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        stage: Tensor = self.encoder(x)[-1]
        rows, columns = (
            max(1, round(cells * length / padded))
            for cells, length, padded in zip(stage.shape[-2:], (height, width), x.shape[-2:], strict=True)
        )
        return mean_feature(stage[0, :, :rows, :columns].float())


def look(
    encoder: PretrainedEncoder, images: Sequence[FoundImage]
) -> tuple[list[FoundImage], NDArray[np.float32], list[str]]:
    """Features of images, one by one with a progress bar.

    Returns:
        Images that could be read, their features (N, D), and why each of the others could not be.
    """
    seen, features, skipped = [], [], []
    pause = 0.1 if sys.stderr.isatty() else 10.0
    with tqdm(total=len(images), desc="encoder", unit="image", mininterval=pause) as bar:
        for item in images:
            try:
                features.append(encoder(resize_image(read_image(item.path), WORKING_SIZE)))
            except DataError as error:
                skipped.append(str(error))
                bar.write(f"skipped: {error}", file=sys.stderr)
            else:
                seen.append(item)
            bar.update()
    return seen, np.stack(features) if features else np.zeros((0, 1), np.float32), skipped


def suggest_first(
    inputs: Sequence[Path], known: Sequence[Path], root: Path | None, encoder: PretrainedEncoder, count: int,
    out: Path,
) -> str:  # fmt: skip
    """Choose and write the first images.

    Args:
        inputs: Images, folders and lists.
        known: Lists of images that are not to be chosen.
        root: Folder that lists are relative to, or None to find it.
        encoder: Looks at the images.
        count: Images wanted.
        out: Folder of results.

    Returns:
        What to tell the user.

    Raises:
        DataError, OSError: If nothing can be read or written.
    """
    data = DataConfig()
    given, problems = collect(inputs, out=out, root=root, data=data, skip=[out / SHEET_NAME])
    for text in problems:
        sys.stderr.write(f"skipped: {text}\n")
    candidates = without(given, [image for path in known for image in listed_images(path, root, data)])
    if not candidates:
        raise DataError(f"all {len(given)} images are labelled or excluded already; give other images")
    seen, features, unread = look(encoder, candidates)
    skipped = [*problems, *unread]
    if not seen:
        raise DataError(f"none of the {len(candidates)} images could be read, see above")
    nothing = np.zeros((0, features.shape[1]), np.float32)
    picks, _ = pick_clustered(features, features, nothing, count, 0)
    names = [seen[pick.index].name for pick in picks]
    rows = [{"rank": rank, "image": name, "cluster_size": pick.cluster_size}
            for rank, (name, pick) in enumerate(zip(names, picks, strict=True), start=1)]  # fmt: skip
    counts = {"given": len(given) + len(problems), "labeled_or_excluded": len(given) - len(candidates),
              "skipped": len(skipped), "scored": len(seen), "suggested": len(picks)}  # fmt: skip
    record = {"encoder": encoder.name, "weights": encoder.weights, "embedding": "mean feature",
              "counts": counts, "suggested": rows, "skipped": skipped}  # fmt: skip
    tiles = [
        Tile([small(resize_image(read_image(seen[pick.index].path), WORKING_SIZE))],
             f"{row['rank']}   {row['image']}", f"stands for {pick.cluster_size} images")
        for row, pick in zip(rows[:SHEET_IMAGES], picks, strict=False)
    ]  # fmt: skip
    title = headline(len(picks), len(seen), "first")
    write_results(out, names, record, draw_sheet(tiles, [], columns=COLUMNS, headline=title))
    lines = [f"{row['rank']:>4}  {row['cluster_size']:>6}  {row['image']}" for row in rows]
    return (
        "\n".join(["rank  images  image that stands for them", *lines, ""])
        + f"\n{len(picks)} of {len(seen)} images in {out}; {counts['labeled_or_excluded']} are labelled or "
        f"excluded, {len(skipped)} could not be read\n{evidence('first images')}\nnext: label all images of "
        f"{out / LIST_NAME}; `protoseg init FOLDER` then writes a configuration for them\n"
    )
