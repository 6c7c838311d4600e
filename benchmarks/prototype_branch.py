"""What the prototype branch costs: its share of a training step, and ours against the literal maths.

    python -m benchmarks.prototype_branch [--case camvid|pcr513] [--rounds 5]

The branch is: choose points, read features there, logits, both losses, backward to the feature map,
update of the prototypes. The rest of a step is: teacher forward, student forward and backward with the
linear losses, optimiser, EMA. The literal form is the arithmetic of the paper's released evaluation
port: features upsampled to the image, points read there, a loop over classes and prototypes for logits
and update. Every measurement runs in a process of its own; rounds are interleaved.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.common import ROOT, Answer, Block, Result, markdown_table, parser, spread, write_result
from protoseg.config.load import load_config
from protoseg.config.method import PrototypeConfig

if TYPE_CHECKING:  # the table needs no torch
    from torch import Tensor

    from protoseg.models.prototypes import PrototypeBank

CASES: dict[str, dict[str, Any]] = {
    # labelled + unlabelled images of a step, crop, feature map, classes, prototypes, crop after padding
    "camvid": {
        "images": 8, "size": (160, 224), "features": (256, 40, 56), "classes": 11, "k": 4,
        "padded": (160, 224), "overrides": [], "step_images": 8,
    },
    "pcr513": {
        "images": 4, "size": (513, 513), "features": (512, 136, 136), "classes": 21, "k": 4,
        "padded": (544, 544),
        # two images go through the network, and the time is doubled: four need more memory than 24 GB
        "overrides": ["model.preset=pcr_resnet101", "optim.name=sgd"], "step_images": 2,
    },
}  # fmt: skip
GRID = 32


def peak_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def inputs(case: dict[str, Any]) -> tuple[Tensor, Tensor, PrototypeBank]:
    """Features, targets with a tenth ignored, and a started bank."""
    import torch

    from protoseg.models.prototypes import PrototypeBank

    generator = torch.Generator().manual_seed(0)
    features = torch.randn(case["images"], *case["features"], generator=generator)
    target = torch.randint(0, case["classes"], (case["images"], *case["size"]), generator=generator)
    target[:, : case["size"][0] // 10] = -1
    bank = PrototypeBank(case["classes"], case["k"], case["features"][0])
    bank.start(
        {c: torch.randn(case["k"], case["features"][0], generator=generator) for c in range(case["classes"])}
    )
    return features, target, bank


def ours(
    case: dict[str, Any], features: Tensor, target: Tensor, bank: PrototypeBank, rng: np.random.Generator
) -> None:
    """The branch as the trainer runs it."""
    from protoseg.method.prototype_branch import move_prototypes, moving_points, prototype_losses
    from protoseg.processes import ALONE

    settings = PrototypeConfig(sampling="grid", grid=GRID)
    half = case["images"] // 2
    means, drawn = prototype_losses(
        bank, settings, features.detach().requires_grad_(), target, case["padded"], batch=half,
        class_weights=None, rng=rng, processes=ALONE,
    )  # fmt: skip
    points = moving_points(settings, drawn, None, target.shape[2], case["padded"], batch=half)
    (means["proto_sup"].value + means["proto_uns"].value).backward()
    move_prototypes(bank, [points], settings, 0, reduce=lambda value: value)


def literal(
    case: dict[str, Any], features: Tensor, target: Tensor, bank: PrototypeBank, rng: np.random.Generator
) -> None:
    """The same result by full-resolution features and loops over classes and prototypes."""
    import torch
    import torch.nn.functional as F

    from protoseg.method.points import grid_points

    features = features.detach().requires_grad_()
    half = case["images"] // 2
    height, width = case["size"]
    full = F.interpolate(features, size=case["padded"], mode="bilinear", align_corners=False)
    full = full[..., :height, :width]
    index = grid_points(rng, 1, GRID, case["size"])[0]
    rows, columns = index // width, index % width
    z = full[:, :, rows, columns].transpose(1, 2)
    classes = target[:, rows, columns]
    unit = F.normalize(z, dim=-1)
    columns_of_logits = []
    for c in range(case["classes"]):
        similarities = [unit @ bank.prototypes[c, k] for k in range(case["k"])]
        columns_of_logits.append(torch.stack(similarities, -1).amax(-1) / bank.temperature)
    logits = torch.stack(columns_of_logits, -1)
    loss = torch.zeros(())
    for part in (slice(0, half), slice(half, None)):
        loss = loss + F.cross_entropy(logits[part].flatten(0, 1), classes[part].flatten(), ignore_index=-1)
    loss.backward()
    with torch.no_grad():
        flat, own = unit.flatten(0, 1), classes.flatten()
        for c in range(case["classes"]):
            members = flat[own == c]
            if len(members) == 0:
                continue
            nearest = (members @ bank.prototypes[c].t()).argmax(-1)
            for k in range(case["k"]):
                if (nearest == k).any():
                    mean = members[nearest == k].mean(0)
                    bank.prototypes[c, k] = F.normalize(0.99 * bank.prototypes[c, k] + 0.01 * mean, dim=-1)


def rest_of_step(case: dict[str, Any]) -> Callable[[], None]:
    """A function that runs a training step without the prototype branch, ``step_images`` at a time."""
    import torch

    from protoseg.method.losses import cross_entropy, pseudo_label_cross_entropy
    from protoseg.method.pseudo_labels import pseudo_labels
    from protoseg.method.teacher import make_teacher, update_teacher
    from protoseg.models.segmenter import build_segmenter
    from protoseg.train.optim import make_optimizer

    config = load_config(None, case["overrides"])
    torch.manual_seed(0)
    network = build_segmenter(config.model, config.prototypes, num_classes=case["classes"]).network.train()
    teacher = make_teacher(network)
    optimizer = make_optimizer(network, config.optim)
    half = case["step_images"] // 2
    image = torch.randint(0, 256, (2 * half, 3, *case["size"]), dtype=torch.uint8)
    target = torch.randint(0, case["classes"], (half, *case["size"]))

    def run() -> None:
        with torch.no_grad():
            low = teacher(image[half:]).linear_logits
            label, confidence = pseudo_labels(teacher.upsample(low, *case["size"]).softmax(1))
        logits = network.upsample(network(image).linear_logits, *case["size"])
        sup = cross_entropy(logits[:half], target)
        believed = confidence >= 0.0
        loss = sup.value + pseudo_label_cross_entropy(logits[half:], label, believed) / sup.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_teacher(teacher, network, 0.99)

    return run


def measure(what: str, case: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds (best of ``repeats`` after one warm-up) and memory above the inputs, in this process."""
    import torch

    torch.set_num_threads(1)
    scale = 1.0
    if what == "rest":
        run = rest_of_step(case)
        scale = case["images"] / case["step_images"]
    else:
        run = partial(ours if what == "ours" else literal, case, *inputs(case), np.random.default_rng(0))
    before = peak_mib()
    times = []
    for _ in range(repeats + 1):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return {"cpu_s": scale * min(times[1:]), "extra_mib": peak_mib() - before}


def table(*results: Result) -> str:
    """Time and memory of the prototype branch beside the arithmetic of the released port."""
    rows = []
    for result in results:
        case, seconds, extra = result["case"], result["cpu_seconds"], result["extra_mib"]
        height, width = case["size"]
        rows.append([
            f"{case['images']} images of {height}x{width}, {case['classes']} classes, K = {case['k']}",
            *(f"{seconds[key]['median']:.2f}" for key in ("ours", "literal", "rest")),
            *(f"{extra[key]['median']:,.0f}" for key in ("ours", "literal")),
        ])  # fmt: skip
    said = (
        "Processor seconds and extra memory of the prototype branch in one step: ours, the arithmetic of the "
        "paper's released evaluation port, and the rest of the step (medians)."
    )
    head = ["case", "ours, s", "port, s", "rest of the step, s", "ours, MiB", "port, MiB"]
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "prototype_branch_camvid": Answer(
        "what the prototype branch costs, CamVid configuration",
        "python -m benchmarks.prototype_branch --case camvid",
    ),
    "prototype_branch_pcr513": Answer(
        "the same for the paper's network at 513x513, B = 2",
        "python -m benchmarks.prototype_branch --case pcr513",
    ),
}
BLOCKS = {"prototype_cost": Block(table, tuple(ANSWERS), ("torch",))}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    command.add_argument("--case", choices=sorted(CASES), default="camvid")
    command.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    arguments = command.parse_args(argv)
    case = CASES[arguments.case]
    found: dict[str, list[dict[str, float]]] = {"ours": [], "literal": [], "rest": []}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for number in range(arguments.rounds):
            for what, values in found.items():
                long = what == "rest" and arguments.case == "pcr513"  # a minute each
                if not long or number < 2:
                    values.append(pool.submit(measure, what, case, 1 if long else 3).result())
                    print(number, what, values[-1], flush=True)
    result = {
        "case": {k: v for k, v in case.items() if k not in ("overrides", "padded")},
        "cpu_seconds": {what: spread([v["cpu_s"] for v in values]) for what, values in found.items()},
        "extra_mib": {what: spread([v["extra_mib"] for v in values]) for what, values in found.items()},
    }
    print(table(result))
    print(write_result(f"prototype_branch_{arguments.case}", result).relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main())
