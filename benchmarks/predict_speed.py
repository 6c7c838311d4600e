"""Does ``protoseg predict`` keep the cores busy? Images a second of a folder against the bare network.

    python -m benchmarks.predict_speed RUN
    python -m benchmarks.predict_speed RUN --bundle BUNDLE --ray     # and a Ray cluster of this machine

Contestants take turns. The bare network gets decoded images, as many at a time as there are cores, one
thread each; ``predict`` reads JPEGs and writes its results. On the cluster each worker has one core: told
is what further images cost it (three times as many minus as many), so that starting it does not count,
against one process with the same bundle, one thread and the same tars.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Answer, Block, Result, markdown_table, parser, spread, write_result
from benchmarks.large_sets import make_pictures
from protoseg.cores import usable_cores

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime")
NAMES = {
    "bare": "the network alone, images decoded",
    "masks": "predict, masks alone",
    "all": "predict, all four pictures",
    "one at a time": "predict --workers 1, all four pictures",
}
Turn = Callable[[], float]


def timed(action: Callable[[], object], images: int) -> float:
    """Images a second."""
    began = time.perf_counter()
    action()
    return images / (time.perf_counter() - began)


def predict_turns(run: Path, pictures: Path, out: Path, cores: int) -> dict[str, Turn]:
    """Contestants on a checkpoint."""
    import torch

    from protoseg.checkpoint import load_checkpoint
    from protoseg.data.find import find_images
    from protoseg.data.images import read_image, resize_image
    from protoseg.inference import image_batch, inference
    from protoseg.predict.images import PARTS, predict_files

    checkpoint = load_checkpoint(run)
    segmenter, info = checkpoint.segmenter, checkpoint.info
    found = find_images([pictures], out).images
    decoded = [resize_image(read_image(item.path, info.input.channels), info.input.resize) for item in found]

    def bare() -> None:
        torch.set_num_threads(1)

        def forward(index: int) -> None:
            with torch.no_grad():
                segmenter.network(image_batch([decoded[index]], torch.device("cpu")))

        with inference(segmenter), ThreadPoolExecutor(cores) as pool:
            list(pool.map(forward, range(len(decoded))))

    def predict(parts: tuple[str, ...], workers: int) -> None:
        torch.set_num_threads(max(1, cores // workers))
        shutil.rmtree(out, ignore_errors=True)
        list(predict_files(segmenter, info, found, out, parts=parts, workers=workers))

    bodies: dict[str, Callable[[], None]] = {
        "bare": bare,
        "masks": lambda: predict(PARTS[:1], cores),
        "all": lambda: predict(PARTS, cores),
        "one at a time": lambda: predict(PARTS, 1),
    }
    return {name: lambda body=body: timed(body, len(found)) for name, body in bodies.items()}  # type: ignore[misc]


def cluster_figures(bundle: Path, pictures: Path, work: Path, cores: int) -> dict[str, float]:
    """Images a second and core: a process alone, and on a Ray cluster of this machine."""
    from protoseg.distributed.__main__ import main as cluster
    from protoseg.distributed.plan import find_items, keys_of
    from protoseg.distributed.work import make_shard, open_model

    items = find_items([str(pictures)], work)
    model = open_model(str(bundle), None, 1)
    alone = timed(lambda: make_shard(model, items, keys_of(items), _fresh(work / "alone"), 0), len(items))
    model.close()
    many = work / "many"
    for number in range(3):
        shutil.copytree(pictures, many / str(number))

    def on_cluster(folder: Path) -> float:
        out = work / "cluster"
        shutil.rmtree(out, ignore_errors=True)
        command = [str(bundle), str(folder), "-o", str(out), "--ray", "local", "--workers", str(cores),
                   "--shard-size", str(max(1, len(items) // (2 * cores)))]  # fmt: skip
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            if cluster(command) != 0:
                raise RuntimeError("the cluster failed, see above")
        return time.perf_counter() - began

    once, thrice = on_cluster(pictures), on_cluster(many)
    return {"alone": alone, "cluster": 2 * len(items) / (thrice - once) / cores, "start_s": once}


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def table(result: Result) -> str:
    """Images a second of each contestant."""
    rows = [
        [NAMES[name], f"{figure['median']:.1f}", f"{result['over_bare'][name]['median']:.2f}"]
        for name, figure in result["images_per_s"].items()
    ]
    height, width = result["size"]
    said = (
        f"Images of {height}x{width} a second on {result['cores']} cores (median of "
        f"{result['rounds']} interleaved rounds), and against the network alone."
    )
    text = f"{said}\n\n{markdown_table(['', 'images/s', 'against the network'], rows)}"
    if (ray := result.get("ray")) is not None:
        share = ray["cluster_over_alone"]
        start = ray["start_s"]["median"]
        text += (
            f"\n\nOn a Ray cluster of this machine a core makes {share['median']:.2f} ({share['min']:.2f} to "
            f"{share['max']:.2f}) of the images that one process with one thread makes (bundle, tars of "
            f"masks); a call of {result['images']} images takes {start:.0f} s with the start."
        )
    return text


ANSWERS = {
    "predict_speed": Answer(
        "images a second of predict against the bare network, and of a Ray cluster against one process",
        "python -m benchmarks.predict_speed RUN --bundle BUNDLE --ray",
    )
}
BLOCKS = {"predict_speed": Block(table, ("predict_speed",), PACKAGES)}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    add = command.add_argument
    add("run", type=Path, help="run or checkpoint folder")
    add("--bundle", type=Path, help="its bundle, for --ray")
    add("--ray", action="store_true", help="measure a Ray cluster of this machine, too")
    add("--images", type=int, default=48, help="images of a turn")
    add("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"), help="of an image")
    add("--rounds", type=int, default=5, help="interleaved rounds")
    add("--name", default="predict_speed", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = command.parse_args(argv)
    if args.ray and args.bundle is None:
        command.error("--ray needs --bundle")
    cores = usable_cores()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        make_pictures(pictures, args.images, tuple(args.size))
        turns = predict_turns(args.run, pictures, Path(folder) / "out", cores)
        rates: dict[str, list[float]] = {name: [] for name in turns}
        for name in turns:
            turns[name]()  # memory pools and convolution plans settle
        for _ in range(args.rounds):
            for name, turn in turns.items():
                rates[name].append(turn())
        result: dict[str, Any] = {
            "images": args.images, "size": list(args.size), "cores": cores, "rounds": args.rounds,
            "images_per_s": {name: spread(values) for name, values in rates.items()},
            "over_bare": {
                name: spread([own / bare for own, bare in zip(values, rates["bare"], strict=True)])
                for name, values in rates.items()
            },
        }  # fmt: skip
        if args.ray:
            found = [
                cluster_figures(args.bundle.resolve(), pictures, _fresh(Path(folder) / f"ray{number}"), cores)
                for number in range(args.rounds)
            ]
            result["ray"] = {
                "alone": spread([item["alone"] for item in found]),
                "cluster": spread([item["cluster"] for item in found]),
                "cluster_over_alone": spread([item["cluster"] / item["alone"] for item in found]),
                "start_s": spread([item["start_s"] for item in found]),
            }
    path = write_result(args.name, result, args.results)
    print(f"{table(result)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
