"""Does ``protoseg predict`` keep the cores busy? Images a second of a folder against the bare network.

    python -m benchmarks.predict_speed RUN
    python -m benchmarks.predict_speed RUN --bundle BUNDLE --ray     # and a Ray cluster of this machine

Contestants take turns. The bare networks, torch's and the bundle's graph of labels alone in ONNX Runtime, get
decoded images, as many at a time as there are cores, one thread each; ``predict`` reads JPEGs and writes its
results. Freed memory stays with the process for all of them, as ``predict`` has it for a checkpoint. On the
cluster each worker has one core: told is what further images cost it (three times as many minus as many), so
that starting it does not count, against one process with the same bundle, one thread and the same tars.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, Answer, Block, Result, markdown_table, parser, spread, write_result
from benchmarks.large_sets import make_pictures
from protoseg.allocator import keep_freed_memory
from protoseg.cores import usable_cores
from protoseg.manifest import read_manifest

PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime")
CONTESTANTS = {
    "both heads": ("torch: the network alone with the features of both heads, images decoded", "bare"),
    "bare": ("torch: the network alone as far as the head needs it, images decoded", "bare"),
    "masks": ("predict, masks alone", "bare"),
    "all": ("predict, all four pictures", "bare"),
    "one at a time": ("predict --workers 1, all four pictures", "bare"),
    "bundle bare": ("ONNX Runtime: the graph of labels alone, images decoded", "bundle bare"),
    "bundle all outputs": ("the graph of all outputs, images decoded", "bundle bare"),
    "bundle masks": ("predict with the bundle, masks alone", "bundle bare"),
    "bundle all": ("predict with the bundle, all four pictures", "bundle bare"),
}
"""What is measured, its text, and against what."""
Turn = Callable[[], tuple[float, float]]


def timed(action: Callable[[], object], images: int) -> tuple[float, float]:
    """Images a second, and milliseconds of processor time an image."""
    began, cpu = time.perf_counter(), time.process_time()
    action()
    return images / (time.perf_counter() - began), 1000 * (time.process_time() - cpu) / images


def each(compute: Callable[[Any], object], items: Sequence[Any], cores: int) -> None:
    """Something of each item, one in each core."""
    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(compute, items))


def checkpoint_turns(run: Path, pictures: Path, out: Path, cores: int) -> dict[str, Turn]:
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

    def bare(both: bool) -> None:
        torch.set_num_threads(1)

        def forward(image: Any) -> None:
            with torch.no_grad():
                segmenter.network(image_batch([image], torch.device("cpu")), project=both)

        with inference(segmenter):
            each(forward, decoded, cores)

    def predict(parts: tuple[str, ...], workers: int) -> None:
        torch.set_num_threads(max(1, cores // workers))
        shutil.rmtree(out, ignore_errors=True)
        list(predict_files(segmenter, info, found, out, parts=parts, workers=workers))

    return turns({
        "both heads": lambda: bare(both=True), "bare": lambda: bare(both=False),
        "masks": lambda: predict(PARTS[:1], cores), "all": lambda: predict(PARTS, cores),
        "one at a time": lambda: predict(PARTS, 1),
    }, len(found))  # fmt: skip


def bundle_turns(bundle: Path, pictures: Path, out: Path, cores: int) -> dict[str, Turn]:
    """Contestants on a bundle."""
    import onnxruntime as ort

    from protoseg.api.model import Wanted
    from protoseg.api.predict import predict_files
    from protoseg.data.find import RESULT_FOLDERS, find_images
    from protoseg.data.images import read_image, resize_image
    from serving.local import Bundle
    from serving.model.pack import pack

    model, found = Bundle(bundle, threads=1), find_images([pictures], out).images
    layout = read_manifest(bundle).graph.input_layout
    batches = [
        pack([resize_image(read_image(item.path, model.input.channels), model.input.resize)], layout, 1)
        for item in found
    ]

    def bare(name: str) -> Callable[[], None]:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(bundle / name, options, providers=["CPUExecutionProvider"])
        return lambda: each(lambda batch: session.run(None, {"image": batch}), batches, cores)

    def predict(parts: tuple[str, ...]) -> None:
        shutil.rmtree(out, ignore_errors=True)
        wanted = Wanted(scores=len(parts) > 1)
        list(predict_files(model, found, out, wanted, parts=parts, workers=cores))

    return turns({
        "bundle bare": bare("model.labels.onnx"), "bundle all outputs": bare("model.onnx"),
        "bundle masks": lambda: predict(RESULT_FOLDERS[:1]), "bundle all": lambda: predict(RESULT_FOLDERS),
    }, len(found))  # fmt: skip


def turns(bodies: dict[str, Callable[[], None]], images: int) -> dict[str, Turn]:
    """Contestants that are timed."""
    return {name: lambda body=body: timed(body, images) for name, body in bodies.items()}  # type: ignore[misc]


def cluster_figures(bundle: Path, pictures: Path, work: Path, cores: int) -> dict[str, float]:
    """Images a second and core: a process alone, and on a Ray cluster of this machine."""
    from protoseg.distributed.__main__ import main as cluster
    from protoseg.distributed.plan import find_items, keys_of
    from protoseg.distributed.work import make_shard, open_model

    items = find_items([str(pictures)], work)
    model = open_model(str(bundle), None, 1)
    alone = timed(lambda: make_shard(model, items, keys_of(items), _fresh(work / "alone"), 0), len(items))[0]
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


def speeds(found: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """Figures of contestants: images a second, processor time, and both against the bare network."""
    figures: dict[str, Any] = {"images_per_s": {}, "cpu_ms": {}, "over_bare": {}, "bare_over_cpu": {}}
    for name, values in found.items():
        bare = found[CONTESTANTS[name][1]]
        figures["images_per_s"][name] = spread([rate for rate, _ in values])
        figures["cpu_ms"][name] = spread([cpu for _, cpu in values])
        figures["over_bare"][name] = spread([a[0] / b[0] for a, b in zip(values, bare, strict=True)])
        figures["bare_over_cpu"][name] = spread([b[1] / a[1] for a, b in zip(values, bare, strict=True)])
    return figures


def copy_photographs(source: Path, folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEGs of the first photographs of a folder, at (height, width)."""
    from PIL import Image

    files = sorted(source.glob("*.jpg"))[:count]
    if len(files) < count:
        raise SystemExit(f"error: {source} has {len(files)} .jpg files, --images is {count}")
    folder.mkdir()
    for file in files:
        with Image.open(file) as image:
            photograph = image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC)
        photograph.save(folder / file.name, quality=90)


def table(result: Result) -> str:
    """Images a second of each contestant."""
    rows = [
        [
            CONTESTANTS[name][0], f"{figure['median']:.1f}", f"{result['cpu_ms'][name]['median']:.0f}",
            *(f"{result[key][name]['median']:.2f}" for key in ("over_bare", "bare_over_cpu")),
        ]
        for name, figure in result["images_per_s"].items()
    ]  # fmt: skip
    height, width = result["size"]
    said = (
        f"{result['pictures']} of {height}x{width} on {result['cores']} cores (median of {result['rounds']} "
        "interleaved rounds). Against the network alone in the same runtime: images a second over its, and "
        "its processor time over one's own."
    )
    head = ["", "images/s", "processor time of one, ms", "images/s against", "processor time against"]
    text = f"{said}\n\n{markdown_table(head, rows)}"
    if (ray := result.get("ray")) is not None:
        share = ray["cluster_over_alone"]
        start, on = ray["start_s"]["median"], f" ({ray['date']})" if "date" in ray else ""
        text += (
            f"\n\nOn a Ray cluster of this machine{on} a core makes {share['median']:.2f} "
            f"({share['min']:.2f} to {share['max']:.2f}) of the images that one process with one thread "
            f"makes (bundle, tars of masks); a call of {result['images']} images takes {start:.0f} s with "
            "the start."
        )
    return text


ANSWERS = {
    "predict_speed": Answer(
        "images a second of predict against the bare network, and of a Ray cluster against one process",
        "python -m benchmarks.predict_speed RUN --bundle BUNDLE --photographs IMAGES --ray",
    )
}
BLOCKS = {"predict_speed": Block(table, ("predict_speed",), PACKAGES)}


def main(argv: list[str] | None = None) -> int:
    command = parser(__doc__)
    add = command.add_argument
    add("run", type=Path, help="run or checkpoint folder")
    add("--bundle", type=Path, help="its bundle, measured too")
    add("--ray", action="store_true", help="measure a Ray cluster of this machine, too")
    add("--photographs", type=Path, help="folder of photographs, brought to --size; else pictures are made")
    add("--images", type=int, default=48, help="images of a turn")
    add("--size", type=int, nargs=2, default=(375, 500), metavar=("HEIGHT", "WIDTH"), help="of an image")
    add("--rounds", type=int, default=5, help="interleaved rounds")
    add("--name", default="predict_speed", help="name of the result file")
    add("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = command.parse_args(argv)
    if args.ray and args.bundle is None:
        command.error("--ray needs --bundle")
    cores = usable_cores()
    keep_freed_memory(threads=True)
    with tempfile.TemporaryDirectory() as folder:
        pictures, out = Path(folder) / "pictures", Path(folder) / "out"
        if args.photographs is None:
            make_pictures(pictures, args.images, tuple(args.size))
        else:
            copy_photographs(args.photographs, pictures, args.images, tuple(args.size))
        contestants = checkpoint_turns(args.run, pictures, out, cores)
        if args.bundle is not None:
            contestants |= bundle_turns(args.bundle.resolve(), pictures, out, cores)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for turn in contestants.values():
            turn()  # memory pools and convolution plans settle
        for _ in range(args.rounds):
            for name, turn in contestants.items():
                found[name].append(turn())
        result: dict[str, Any] = {
            "images": args.images, "size": list(args.size), "cores": cores, "rounds": args.rounds,
            "pictures": "Made pictures" if args.photographs is None else "Photographs",
            **speeds(found),
        }  # fmt: skip
        before = args.results / f"{args.name}.json"
        if not args.ray and before.is_file():
            # what is not measured again stays, with its own date
            old = json.loads(before.read_text(encoding="utf-8"))
            result |= {"ray": {"date": old["date"]} | old["ray"]} if "ray" in old else {}
        if args.ray:
            figures = [
                cluster_figures(args.bundle.resolve(), pictures, _fresh(Path(folder) / f"ray{number}"), cores)
                for number in range(args.rounds)
            ]
            result["ray"] = {
                "alone": spread([item["alone"] for item in figures]),
                "cluster": spread([item["cluster"] for item in figures]),
                "cluster_over_alone": spread([item["cluster"] / item["alone"] for item in figures]),
                "start_s": spread([item["start_s"] for item in figures]),
            }
    path = write_result(args.name, result, args.results)
    print(f"{table(result)}\n\n{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
