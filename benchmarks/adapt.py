r"""What is a class worth that is added without training? VOC: five more for a network that knows fifteen.

    python -m benchmarks.held_out prepare && python -m benchmarks.held_out train
    python -m benchmarks.adapt                              # 1, 5 and 10 images of each class, three draws

For each number of images and each draw, ``protoseg adapt --add`` adds the five classes one after the other,
as it does and with rows that read the decoder alone; and from the same images, masks and other images of the
training, (a) the linear head alone is trained (``--head-seconds``), and (b) with ``--all-seconds`` the whole
network. (c) is the network that was trained with all classes on all images. The fine-tuned networks label
pixels beside a new class as the network before them does, and other images by their masks.

Figures: IoU on every fourth validation image, masks of all 20 classes. "Old" is the mean over background and
the fifteen classes, where pixels of the five are left out: a network cannot gain there by knowing them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
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
from benchmarks.fine_tuning import pixels_of, trained_head, trained_network
from benchmarks.held_out import HELD_OUT
from protoseg.errors import guarded
from protoseg.evaluate.metrics import iou_per_class

if TYPE_CHECKING:
    from torch import Tensor

    from protoseg.adapt.cells import Cells, Pixels
    from protoseg.adapt.rows import Heads
    from protoseg.checkpoint import Checkpoint

SHOWN = 0.01
"""Part of an image from which on it shows a class."""
HEAD = "linear"
"""Head of the table."""
WAYS = {
    "adapt": "adapt",
    "decoder": "adapt, decoder alone",
    "heads": "(a) head trained",
    "all": "(b) all trained",
}
SECONDS = {"heads": "head_seconds", "all": "all_seconds"}


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

    def __init__(self, source: Checkpoint, data: Path) -> None:
        import torch
        from PIL import Image

        from protoseg.adapt.cells import reads
        from protoseg.data.images import read_image
        from protoseg.inference import image_batch, inference

        self.segmenter = source.segmenter
        self.maps: list[tuple[Tensor, Tensor, Pixels]] = []
        with inference(source.segmenter), reads(source.segmenter.network) as seen:
            for line in (data / "val_fast_all.txt").read_text(encoding="utf-8").splitlines():
                image_name, mask_name = line.split()
                batch = image_batch([read_image(data / image_name)], torch.device("cpu"))
                features = self.segmenter.network(batch).features[0]
                mask = np.asarray(Image.open(data / mask_name))
                read = torch.cat(seen.pop(), 1)[0]
                self.maps.append((read.half(), features.half(), mask))

    def figures(self, weight: Tensor, prototypes: Tensor | None, old: int) -> dict[str, dict[str, float]]:
        """Figures of each head from (C, D + S + 1) rows and (C, K, P) prototypes; see ``figures``."""
        import torch

        from protoseg.evaluate.metrics import confusion_matrix
        from protoseg.inference import HEADS, HeadLogits, score
        from protoseg.models.prototypes import PrototypeBank

        network, own, bank = self.segmenter.network, self.segmenter.bank, None
        if prototypes is not None:
            bank = PrototypeBank(
                len(weight), own.num_prototypes, own.dim, temperature=own.temperature, pooling=own.pooling
            )
            bank.start(dict(enumerate(prototypes)))
        heads = HEADS if bank is not None else HEADS[:1]
        counts = {head: np.zeros((old + len(HELD_OUT),) * 2, np.int64) for head in heads}
        with torch.no_grad():
            for linear, features, mask in self.maps:
                low = torch.einsum("cd,dyx->cyx", weight[:, :-1], linear.float()) + weight[:, -1, None, None]
                near = None if bank is None else bank.dense_logits(features[None].float())
                logits = HeadLogits(
                    network.upsample(low[None], *mask.shape),
                    None if near is None else network.upsample(near, *mask.shape),
                )
                for head in heads:
                    label = score(logits, head).label[0].numpy()
                    counts[head] += confusion_matrix(label, mask, len(counts[head]))
        return {head: figures(table, old) for head, table in counts.items()}


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
    source: Checkpoint, data: Path, lines: dict[str, list[str]], rest: Cells, *, stages: bool = True
) -> tuple[Heads, list[float]]:
    """Heads with the five classes, one after the other, and processor seconds of each."""
    from protoseg.adapt import change
    from protoseg.adapt.adapt import own_cells
    from protoseg.adapt.given import choose_meaning, read_given
    from protoseg.adapt.rows import read_heads
    from protoseg.data.lines import Entry

    heads, seconds = read_heads(source.segmenter), []
    for label, (name, chosen) in enumerate(lines.items(), start=len(source.info.classes)):
        start = time.process_time()
        entries = [Entry(data / image, data / mask) for image, mask in map(str.split, chosen)]
        meaning = choose_meaning(source.info, entries, name, str(label))
        given = read_given(source.info, entries, meaning, name)
        heads = change.add(heads, own_cells(source, given), rest, stages=stages and len(given) > 1)
        seconds.append(time.process_time() - start)
    return heads, seconds


def measure(arguments: argparse.Namespace) -> Result:
    """All figures of a run."""
    from protoseg.adapt.adapt import OTHER_IMAGES
    from protoseg.adapt.others import other_cells
    from protoseg.adapt.rows import read_heads
    from protoseg.checkpoint import load_checkpoint

    folder = arguments.dir.absolute()
    data, source = folder / "data", load_checkpoint(folder / "runs" / arguments.run)
    names = (data / "classes_all.txt").read_text(encoding="utf-8").split()
    old = len(names) - len(HELD_OUT)
    pools = {name: images_of(data, label) for label, name in enumerate(names) if name in HELD_OUT}
    start = time.process_time()
    rest, others = other_cells(source, None, OTHER_IMAGES, None)
    result: Result = {
        "run": arguments.run, "step": source.info.step, "other_images": others,
        "other_seconds": time.process_time() - start, "head_seconds": arguments.head_seconds,
        "all_seconds": arguments.all_seconds, "draws": [],
    }  # fmt: skip
    validation, heads = Validation(source, data), read_heads(source.segmenter)
    result["images"] = len(validation.maps)
    result["before"] = validation.figures(heads.weight, heads.prototypes, old)
    for count in arguments.counts:
        for seed in range(arguments.draws):
            lines = {name: draw(pool, count, seed, names.index(name)) for name, pool in pools.items()}
            found, seconds = added(source, data, lines, rest)
            row: Result = {"count": count, "draw": seed, "seconds": seconds}
            row["adapt"] = validation.figures(found.weight, found.prototypes, old)
            if count > 1 and not arguments.not_decoder:  # from one image adapt reads the decoder alone
                alone, row["decoder_seconds"] = added(source, data, lines, rest, stages=False)
                row["decoder"] = validation.figures(alone.weight, None, old)
            whole_too = count == arguments.all_count and seed < arguments.all_draws
            tune = arguments.head_seconds or (arguments.all_seconds and whole_too)
            tuned = pixels_of(source, data, lines, others) if tune else []
            if arguments.head_seconds:
                head, row["head_steps"] = trained_head(source, tuned, arguments.head_seconds, seed)
                row["heads"] = validation.figures(head.weight, None, old)
            if arguments.all_seconds and whole_too:
                network, row["all_steps"] = trained_network(source, tuned, arguments.all_seconds, seed)
                whole = Validation(replace(source, segmenter=network), data)
                row["all"] = whole.figures(read_heads(network).weight, None, old)
            result["draws"].append(row)
            print(count, seed, f"{sum(seconds):.1f} s", shown(row), flush=True)
            write_result(arguments.name, result, arguments.results)  # hours of work are not lost to a stop
    complete = folder / "runs" / f"all_{arguments.run}"
    if (complete / "checkpoint").is_dir():
        source = load_checkpoint(complete)
        heads = read_heads(source.segmenter)
        result["all_from_the_start"] = Validation(source, data).figures(heads.weight, heads.prototypes, old)
    return result


def shown(row: Result) -> str:
    """Old and new IoU of each way, in percent."""
    return "; ".join(
        f"{way} {head} old {100 * values['old']:.2f} new {100 * values['new']:.2f}"
        for way in WAYS for head, values in row.get(way, {}).items()
    )  # fmt: skip


def table(result: Result, whole: Result) -> str:
    """IoU of new and old classes by number of images, mean over draws with its range.

    ``whole`` has the networks that were trained as a whole.
    """
    rows = []

    def line(name: str, seconds: str, found: Sequence[dict[str, float]]) -> None:
        cells = [spread([100 * values[key] for values in found]) for key in ("new", "old")]
        shown = [f"{cell['mean']:.1f} ({cell['min']:.1f} to {cell['max']:.1f})" if len(found) > 1
                 else f"{cell['mean']:.1f}" for cell in cells]  # fmt: skip
        rows.append([name, seconds, *shown, f"{cells[1]['mean'] - 100 * before[HEAD]['old']:+.1f}"])

    def spread(values: list[float]) -> dict[str, float]:
        return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}

    before = result["before"]
    line("before", "-", [before[HEAD]])
    for count in sorted({row["count"] for row in result["draws"]}):
        for way, title in WAYS.items():
            part = whole if way == "all" else result
            found = [row[way][HEAD] for row in part["draws"] if row["count"] == count and way in row]
            if found:  # not every way was measured with every number
                time_text = f"{part[SECONDS[way]]:.0f}" if way in SECONDS else "-"
                line(f"{count} image{'s' * (count > 1)}, {title}", time_text, found)
    if "all_from_the_start" in result:
        line("(c) trained with all classes", "-", [result["all_from_the_start"][HEAD]])
    text = (
        f"IoU in % of the linear head on {result['images']} validation images: mean of the five new classes, "
        "and of the sixteen others (pixels of the new ones left out); mean and range of the draws of images. "
        "Seconds of training for all five classes.\n\n"
    )
    return text + markdown_table(["", "s", "new", "old", "old - before"], rows)


ANSWERS = {
    "adapt_voc": Answer(
        "a class added without training: VOC, five classes held out", "python -m benchmarks.adapt"
    ),
    "adapt_voc_all": Answer(
        "the same against training the whole network",
        "python -m benchmarks.adapt --counts 5 --draws 1 --head-seconds 0 --all-seconds 600 "
        "--name adapt_voc_all",
    ),
}
BLOCKS = {"adapt_voc": Block(table, ("adapt_voc", "adapt_voc_all"), TRAINING)}


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
        help="processor seconds for which all is trained; 0: not at all",
    )
    add("--all-count", type=int, default=5, help="number of images for which all is trained")
    add("--all-draws", type=int, default=1, help="draws for which all is trained (%(default)s)")
    add("--not-decoder", action="store_true", help="leave out rows that read the decoder alone")
    add("--name", default="adapt_voc", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = command.parse_args(argv)

    def body() -> int:
        print(write_result(arguments.name, measure(arguments), arguments.results))
        return 0

    return guarded(body)


if __name__ == "__main__":
    sys.exit(main())
