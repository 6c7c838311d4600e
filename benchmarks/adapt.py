r"""What is a class worth that is added without training? VOC, five classes added to a network that knows
fifteen.

    python -m benchmarks.held_out prepare && python -m benchmarks.held_out train
    python -m benchmarks.adapt                              # 1, 5 and 10 images of each class, three draws

For each number of images and each draw, ``protoseg adapt --add`` adds the five classes one after the other;
and from the same images, masks and other images of the training, (a) the linear head alone is trained
(``--head-seconds``), and (b) with ``--all-seconds`` the whole network. (c) is the network that was trained
with all classes on all images. The fine-tuned networks label pixels beside a new class as the network before
them does, and other images by their masks.

Figures: IoU on every fourth validation image, masks of all 20 classes. "Old" is the mean over background and
the fifteen classes, where pixels of the five are left out: a network cannot gain there by knowing them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import (
    RESULTS,
    ROOT,
    TRAINING,
    Answer,
    Block,
    Result,
    markdown_table,
    parser,
    write_result,
)
from benchmarks.held_out import HELD_OUT
from protoseg.errors import guarded
from protoseg.evaluate.metrics import iou_per_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from protoseg.checkpoint import Checkpoint

SHOWN = 0.01
"""Part of an image from which on it shows a class."""


def images_of(data: Path, label: int) -> list[str]:
    """Lines of the training list whose masks show a class."""
    from PIL import Image

    lines = (data / "train_all.txt").read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines:
        mask = np.asarray(Image.open(data / line.split()[1]))
        if (mask == label).mean() >= SHOWN:
            found.append(line)
    return found


def draw(lines: Sequence[str], count: int, seed: int, label: int) -> list[str]:
    """Images of a class; the same seed gives the same ones."""
    order = np.random.default_rng([seed, label]).permutation(len(lines))
    return [lines[i] for i in order[:count]]


class Validation:
    """Feature maps of the validation images, so that heads are measured without the network before them."""

    def __init__(self, source: Checkpoint, data: Path, names: Sequence[str]) -> None:
        import torch

        from protoseg.adapt.cells import last_layer
        from protoseg.data.masks import MaskReader
        from protoseg.evaluate.measure import read_samples
        from protoseg.inference import image_batch, inference

        info = source.info.model_copy(update={"classes": [*source.info.classes, *[
            source.info.classes[0].model_copy(update={"name": name}) for name in names]]})  # fmt: skip
        settings = source.info.data.model_copy(update={"root": str(data), "val": "val_fast_all.txt"})
        samples, _ = read_samples(settings, "val", info)
        assert isinstance(samples.source.masks, MaskReader)  # type: ignore[attr-defined]
        self.maps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.network, seen = source.segmenter.network, []
        handle = last_layer(self.network).register_forward_pre_hook(lambda _m, given: seen.append(given[0]))
        with inference(source.segmenter):
            for index in range(len(samples)):
                image, mask = samples[index]
                output = self.network(image_batch([image], torch.device("cpu")))
                self.maps.append(
                    (seen.pop()[0].half(), output.features[0].half(), torch.from_numpy(mask.copy()))
                )
        handle.remove()

    def confusion(self, weight: Tensor, prototypes: Tensor | None, source: Checkpoint) -> dict[str, Any]:
        """Counts of each head, (C, C), for (C, D + 1) rows and (C, K, P) prototypes."""
        import torch

        from protoseg.evaluate.metrics import confusion_matrix
        from protoseg.inference import HeadLogits, score
        from protoseg.models.prototypes import PrototypeBank

        classes, bank = len(weight), None
        old = source.segmenter.bank
        if prototypes is not None:
            bank = PrototypeBank(
                classes, old.num_prototypes, old.dim, temperature=old.temperature, pooling=old.pooling
            )
            bank.prototypes.copy_(prototypes)
            bank.active.fill_(True)
        found: dict[str, Any] = {}
        for linear, features, mask in self.maps:
            height, width = mask.shape
            low = torch.einsum("cd,dyx->cyx", weight[:, :-1], linear.float()) + weight[:, -1, None, None]
            logits = HeadLogits(
                self.network.upsample(low[None], height, width),
                None
                if bank is None
                else self.network.upsample(bank.dense_logits(features[None].float()), height, width),
            )
            for head in ("linear", "prototype", "fused") if bank is not None else ("linear",):
                label = score(logits, head).label[0].numpy()  # type: ignore[arg-type]
                found[head] = found.get(head, 0) + confusion_matrix(label, mask.numpy(), 21)
        return found


def figures(confusion: Any, old: int) -> dict[str, float]:
    """Mean IoU of the old classes without pixels of the new ones, of the new ones, and of each new one."""
    rest = confusion.copy()
    rest[old:] = 0
    with_new = iou_per_class(confusion)
    return {
        "old": float(np.nanmean(iou_per_class(rest)[:old])),
        "new": float(np.nanmean(with_new[old:])),
        "miou": float(np.nanmean(with_new)),
        **{name: float(with_new[old + i]) for i, name in enumerate(HELD_OUT)},
    }


def added(
    source: Checkpoint, data: Path, lines: dict[str, list[str]], folder: Path
) -> tuple[Checkpoint, list[float]]:
    """The network with the five classes, one after the other, and the seconds of each."""
    from protoseg.adapt.adapt import Change, adapt
    from protoseg.files import write_text_whole

    seconds = []
    for label, (name, chosen) in enumerate(lines.items(), start=len(source.info.classes)):
        listed = folder / f"{name}.txt"
        write_text_whole(
            listed, "".join(f"{data / image} {data / mask}\n" for image, mask in map(str.split, chosen))
        )
        start = time.perf_counter()
        source = adapt(
            source, Change("add", name, images=listed, value=str(label)), source.info.name
        ).checkpoint
        seconds.append(time.perf_counter() - start)
    return source, seconds


def pixels_of(
    source: Checkpoint, data: Path, lines: dict[str, list[str]], others: int
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Images and labels for fine-tuning: of the new classes, and of the training.

    A pixel beside a new class is what the network says: the mask says only that it is not of the class.
    """
    from PIL import Image

    from protoseg.data.images import read_image
    from protoseg.data.sources import open_source
    from protoseg.predict.images import predict_image

    given = []
    for label, chosen in enumerate(lines.values(), start=len(source.info.classes)):
        for image_name, mask_name in map(str.split, chosen):
            image, mask = read_image(data / image_name), np.asarray(Image.open(data / mask_name))
            said = predict_image(source.segmenter, image, source.info.input).labels
            given.append(
                (image, np.where(mask == label, label, np.where(mask == 255, 255, said)).astype(np.uint8))
            )
    labeled = open_source(source.info.data, "labeled", source.info.classes)
    chosen = [i * len(labeled) // others for i in range(others)]
    return [given, [(labeled.image(i), labeled.mask(i)) for i in chosen]]


def fine_tuned(
    source: Checkpoint,
    pools: list[list[tuple[np.ndarray, np.ndarray]]],
    seconds: float,
    *,
    whole: bool,
    seed: int,
) -> Checkpoint:
    """The network with five more rows, its linear head or all of it trained for so long.

    Args:
        source: The network that knows fifteen classes.
        pools: See ``pixels_of``; each gives half of a batch.
        seconds: How long.
        whole: Train encoder and decoder, too; batch norm keeps its statistics.
        seed: Of rows, order and crops.
    """
    import torch
    import torch.nn.functional as F

    from protoseg.adapt.rows import Heads, read_heads, with_heads
    from protoseg.checkpoint import Checkpoint

    torch.manual_seed(seed)
    rng, heads, new = np.random.default_rng(seed), read_heads(source.segmenter), len(HELD_OUT)
    rows = torch.cat(
        [0.01 * torch.randn(new, heads.weight.shape[1] - 1), heads.weight[1:, -1:].mean(0).expand(new, 1)], 1
    )
    wide = Heads(torch.cat([heads.weight, rows]), torch.cat([heads.prototypes, heads.prototypes[:new]]),
                 torch.cat([heads.active, heads.active[:new]]))  # fmt: skip
    segmenter = with_heads(source.segmenter, source.info, wide)
    network = segmenter.network
    groups: list[dict[str, Any]] = [{"params": network.linear_head.parameters(), "lr": 2e-3}]
    if whole:
        groups += [{"params": network.backbone.encoder.parameters(), "lr": 5e-5}]
        rest = [p for n, p in network.backbone.named_parameters() if not n.startswith("encoder.")]
        groups += [{"params": rest, "lr": 5e-4}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    first = [group["lr"] for group in groups]
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        for group, rate in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = rate * (1 - spent / seconds) ** 0.9
        crops = [_crop(pool[rng.integers(len(pool))], rng) for pool in pools for _ in range(4)]
        image, target = (torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))
        with torch.set_grad_enabled(whole):
            features, _ = network.backbone((image.permute(0, 3, 1, 2).float() - network.mean) / network.std)
        low = network.linear_head(features)
        logits = F.interpolate(low, size=target.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, target.long(), ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Checkpoint(segmenter, source.info, source.path)


def _crop(
    pair: tuple[np.ndarray, np.ndarray], rng: np.random.Generator, size: int = 192
) -> tuple[np.ndarray, np.ndarray]:
    image, mask = pair
    tall, wide = (max(0, size - length) for length in mask.shape)
    image = np.pad(image, ((0, tall), (0, wide), (0, 0)), mode="edge")
    mask = np.pad(mask, ((0, tall), (0, wide)), constant_values=255)
    y, x = (int(rng.integers(length - size + 1)) for length in mask.shape)
    step = 1 if rng.random() < 0.5 else -1
    return (np.ascontiguousarray(image[y : y + size, x : x + size][:, ::step]),
            np.ascontiguousarray(mask[y : y + size, x : x + size][:, ::step]))  # fmt: skip


def all_from_the_start(run: Path, data: Path, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Figures of the network that was trained with all classes, by head."""
    from protoseg.adapt.rows import read_heads
    from protoseg.checkpoint import load_checkpoint

    source = load_checkpoint(run)
    heads = read_heads(source.segmenter)
    counts = Validation(source, data, []).confusion(heads.weight, heads.prototypes, source)
    return {head: figures(table, len(names) - len(HELD_OUT)) for head, table in counts.items()}


def measure(arguments: argparse.Namespace) -> Result:
    """All figures of a run."""
    import tempfile

    from protoseg.adapt.rows import read_heads
    from protoseg.checkpoint import load_checkpoint

    folder = arguments.dir.absolute()
    data, source = folder / "data", load_checkpoint(folder / "runs" / arguments.run)
    names = (data / "classes_all.txt").read_text(encoding="utf-8").split()
    old = len(names) - len(HELD_OUT)
    pools = {name: images_of(data, label) for label, name in enumerate(names) if name in HELD_OUT}
    validation, heads = Validation(source, data, HELD_OUT), read_heads(source.segmenter)

    def measured(network: Checkpoint, *, prototypes: bool = True) -> dict[str, dict[str, float]]:
        found = read_heads(network.segmenter)
        counts = validation.confusion(found.weight, found.prototypes if prototypes else None, source)
        return {head: figures(table, old) for head, table in counts.items()}

    before = validation.confusion(heads.weight, heads.prototypes, source)
    result: Result = {
        "run": arguments.run, "step": source.info.step, "images": len(validation.maps), "draws": [],
        "before": {head: figures(table, old) for head, table in before.items()},
    }  # fmt: skip
    for count in arguments.counts:
        for seed in range(arguments.draws):
            lines = {name: draw(pool, count, seed, names.index(name)) for name, pool in pools.items()}
            with tempfile.TemporaryDirectory() as place:
                network, seconds = added(source, data, lines, Path(place))
            row: Result = {"count": count, "draw": seed, "seconds": seconds, "adapt": measured(network)}
            tuned = pixels_of(source, data, lines, 64)
            if arguments.head_seconds:
                network = fine_tuned(source, tuned, arguments.head_seconds, whole=False, seed=seed)
                row["heads"] = measured(network, prototypes=False)
            if arguments.all_seconds and count == arguments.counts[len(arguments.counts) // 2]:
                network = fine_tuned(source, tuned, arguments.all_seconds, whole=True, seed=seed)
                tables = Validation(network, data, HELD_OUT).confusion(
                    read_heads(network.segmenter).weight, None, network
                )
                row["all"] = {head: figures(table, old) for head, table in tables.items()}
            result["draws"].append(row)
            shown = {way: {head: {k: round(100 * v, 2) for k, v in values.items() if k in ("old", "new")}
                           for head, values in row[way].items()} for way in ("adapt", "heads", "all") if way in row}  # fmt: skip
            print(count, seed, [round(s, 1) for s in seconds], shown, flush=True)
    if (folder / "runs" / f"all_{arguments.run}" / "checkpoint").is_dir():
        result["all_from_the_start"] = all_from_the_start(
            folder / "runs" / f"all_{arguments.run}", data, names
        )
    return {**result, "head_seconds": arguments.head_seconds, "all_seconds": arguments.all_seconds}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the result; returns the exit code."""
    command = parser(__doc__, prog="python -m benchmarks.adapt")
    add = command.add_argument
    add(
        "--dir", type=Path, default=ROOT / "runs" / "held_out", help="folder with data/ and runs/ of held_out"
    )
    add("--run", default="seed0", help="network that knows fifteen classes; its all_ one is (c)")
    add("--counts", type=int, nargs="+", default=[1, 5, 10], help="images of each class")
    add("--draws", type=int, default=3, help="draws of the images")
    add("--head-seconds", type=float, default=60, help="how long the head alone is trained; 0: not at all")
    add(
        "--all-seconds",
        type=float,
        default=0,
        help="how long all is trained, for the middle count; 0: not at all",
    )
    add("--name", default="adapt_voc", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = command.parse_args(argv)

    def body() -> int:
        print(write_result(arguments.name, measure(arguments), arguments.results))
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
