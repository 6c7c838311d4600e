"""Would other prototypes of the same features do better? One to eight of each class, found after training.

    python -m benchmarks.prototype_count RUN... [--images 400]

The network stays as it is. Its prototypes are put aside for the centres of k-means over the features of the
labelled training images, 1, 2, 4 or 8 of each class, and the prototype head and the mean of both heads are
measured on validation images at the working size. The share of its class's labelled pixels that the most
used prototype wins tells whether a class looks several ways to the network at all.

The result file keeps the runs that it has; one of the same folder name is measured again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import RESULTS, TRAINING, Answer, Block, Result, markdown_table, parser, write_result

if TYPE_CHECKING:  # the table needs no torch
    from torch import Tensor

    from protoseg.models.prototypes import PrototypeBank

COUNTS = (1, 2, 4, 8)
PIXELS = 20_000
"""Labelled pixels of a class that k-means sees, at the most."""
TRAINED = "as trained"


def most_used(bank: PrototypeBank, features: dict[int, Tensor]) -> float:
    """Mean over classes of the share of its labelled pixels that a class's most used prototype wins."""
    from protoseg.models.prototypes import unit

    shares = []
    for class_id, points in features.items():
        winner = (unit(points) @ bank.prototypes[class_id].t()).argmax(1)
        shares.append(float(winner.bincount(minlength=bank.num_prototypes).max()) / len(points))
    return float(np.mean(shares))


def measure(run: str, num_images: int) -> dict[str, Any]:
    """Validation mIoU of one run with each set of prototypes."""
    import torch
    from tqdm import tqdm

    from protoseg.checkpoint import load_checkpoint
    from protoseg.config.method import PrototypeConfig
    from protoseg.data.images import resize_image, resize_mask
    from protoseg.data.sources import CachedSource, open_source
    from protoseg.evaluate.metrics import confusion_matrix, miou
    from protoseg.inference import image_batch, inference
    from protoseg.method.prototype_start import labeled_features, starting_prototypes
    from protoseg.models.prototypes import PrototypeBank

    checkpoint = load_checkpoint(run)
    info, network, trained = checkpoint.info, checkpoint.segmenter.network, checkpoint.segmenter.bank
    device, classes, rng = torch.device("cpu"), trained.num_classes, np.random.default_rng(0)
    labeled = CachedSource(open_source(info.data, "labeled", info.classes), info.data)
    settings = PrototypeConfig(start_images=len(labeled), start_pixels=PIXELS)
    val = open_source(info.data, "val", info.classes)
    chosen = np.unique(np.linspace(0, len(val) - 1, min(num_images, len(val))).round().astype(int))
    with inference(checkpoint.segmenter):
        features = labeled_features(
            network, labeled, settings, num_classes=classes, ignore_index=info.ignore_index,
            on_error="raise", device=device, rng=rng,
        )  # fmt: skip
        banks = {TRAINED: trained}
        for count in COUNTS:
            bank = PrototypeBank(classes, count, trained.dim, temperature=trained.temperature)
            bank.start(starting_prototypes(features, count, "kmeans", rng))
            banks[f"k-means, K = {count}"] = bank
        heads = ["linear", *(f"{name}|{head}" for name in banks for head in ("prototype", "fused"))]
        counts = {head: np.zeros((classes, classes), np.int64) for head in heads}
        for index in tqdm(chosen.tolist(), desc=info.name, disable=not sys.stderr.isatty()):
            image = resize_image(val.image(index), info.input.resize)
            target = resize_mask(val.mask(index), info.input.resize)
            known = target != info.ignore_index
            out = network(image_batch([image], device))
            linear = network.upsample(out.linear_logits, *target.shape).softmax(1)
            scores = {"linear": linear}
            for name, bank in banks.items():
                own = network.upsample(bank.dense_logits(out.features), *target.shape).softmax(1)
                scores |= {f"{name}|prototype": own, f"{name}|fused": own + linear}
            for head, score in scores.items():
                label = score.argmax(1)[0].numpy()
                counts[head] += confusion_matrix(label[known], target[known], classes)
    figures = {head: miou(table) for head, table in counts.items()}
    return {
        "run": Path(run).name,
        "step": info.step,
        "weights_sha256": info.weights_sha256,
        "trained_count": trained.num_prototypes,
        "images": len(chosen),
        "linear": figures["linear"],
        "prototypes": {
            name: {
                "most_used_share": most_used(bank, features),
                **{head: figures[f"{name}|{head}"] for head in ("prototype", "fused")},
            }
            for name, bank in banks.items()
        },
    }


def table(result: Result) -> str:
    """A row for each run and set of prototypes."""
    rows = []
    for item in result["runs"]:
        for name, found in item["prototypes"].items():
            shown = f"{name}, K = {item['trained_count']}" if name == TRAINED else name
            own = f"{100 * found['most_used_share']:.0f}"
            figures = (f"{100 * value:.1f}" for value in (found["prototype"], found["fused"], item["linear"]))
            rows.append([item["run"], shown, own, *figures])
    head = ["run", "prototypes", "pixels won by the most used, %", "prototype head", "fused", "linear head"]
    said = (
        "mIoU in % on validation images at the working size, with the prototypes of the training and with "
        "centres of k-means over its labelled images."
    )
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "prototype_count": Answer(
        "would one or eight prototypes of each class do better on the same features",
        "python -m benchmarks.prototype_count RUN...",
        in_parts=True,
    )
}
BLOCKS = {"prototype_count": Block(table, ("prototype_count",), TRAINING)}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("runs", nargs="+", metavar="RUN", help="run or checkpoint folders")
    command.add_argument("--images", type=int, default=400, help="validation images, spread evenly")
    command.add_argument("--name", default="prototype_count", help="result file")
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    arguments = command.parse_args(argv)
    kept = arguments.results / f"{arguments.name}.json"
    earlier = json.loads(kept.read_text())["runs"] if kept.is_file() else []
    found = {item["run"]: item for item in earlier}
    found |= {item["run"]: item for item in (measure(run, arguments.images) for run in arguments.runs)}
    result = {"runs": list(found.values())}
    path = write_result(arguments.name, result, arguments.results)
    print(f"{table(result)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
