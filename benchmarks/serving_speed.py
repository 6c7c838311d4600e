"""Requests per CPU-second of the service against bare ``session.run`` calls on the same bundle.

All contestants take turns within one run, so that a noisy neighbour hurts all of them; CPU seconds are
those of the server's processes (and of this process for the bare calls, which get decoded pixels at the
bundle's working size, so that decoding, HTTP and the PNG count against the service alone). As many bare calls
run at a time as the service computes, because cores that share caches make every call dearer;
``bare_one_at_a_time`` shows how much. Also measures the cold start and the memory of a worker. Examples::

    python -m benchmarks.serving_speed --checkpoint runs/quickstart/checkpoint --size 512
    python -m benchmarks.serving_speed runs/quickstart/bundle

The first exports the checkpoint for images of ``--size`` and compares with FastAPI and torch as well.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime as ort

from benchmarks.common import (
    SERVING,
    Answer,
    Block,
    Result,
    markdown_table,
    middle,
    parser,
    spread,
    write_result,
)
from benchmarks.nearest_color import encode, sample_image
from benchmarks.serving_bundle import make_bundle
from benchmarks.serving_server import Server
from protoseg.cores import usable_cores
from protoseg.input_rule import ResizeConfig
from protoseg.manifest import Head, read_manifest
from serving.pixels.decode import resize

Turn = Callable[[int], float]
BASELINES = "benchmarks.serving_baselines"
OTHERS = {"litserve": "litserve", "ray": "ray[serve]"}
"""Servers that are compared where they are installed, and what installs them."""


def bare(bundle: Path, size: int, lean: bool, at_a_time: int) -> Turn:
    """CPU seconds of a number of ``session.run`` calls; ``lean`` takes the graph cut down to labels."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    manifest = read_manifest(bundle)
    cuts = {tuple(item.name for item in cut.outputs): cut.name for cut in manifest.cuts("model.onnx")}
    if lean and ("labels",) not in cuts:
        raise SystemExit(f"{bundle} has no graph cut down to labels; export the checkpoint again")
    name = cuts["labels",] if lean else "model.onnx"
    session = ort.InferenceSession(bundle / name, options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    image = resize(sample_image(size, size), manifest.input.resize)
    batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None])

    def one(_: int) -> None:
        session.run(names, {"image": batch})

    def turn(calls: int) -> float:
        with ThreadPoolExecutor(at_a_time) as pool:
            start = time.process_time()
            list(pool.map(one, range(calls)))
            return time.process_time() - start

    turn(at_a_time)
    return turn


def export_for(checkpoint: Path, size: int, head: Head, folder: Path) -> tuple[Path, Path]:
    """The bundle and the checkpoint of the same weights with ``size`` x ``size`` as working size."""
    from export.graph.trace import ExportSettings
    from export.onnx import export_bundle
    from protoseg.checkpoint import load_checkpoint, save_checkpoint

    loaded = load_checkpoint(checkpoint)
    rule = ResizeConfig(mode="fixed", height=size, width=size)
    info = loaded.info.model_copy(
        update={
            "input": loaded.info.input.model_copy(update={"resize": rule}),
            "data": loaded.info.data.model_copy(update={"resize": rule}),
        }
    )
    save_checkpoint(folder / "checkpoint", loaded.segmenter, info)
    settings = ExportSettings(head=head)
    bundle, _ = export_bundle(load_checkpoint(folder / "checkpoint"), folder / "bundle", settings)
    return bundle, folder / "checkpoint"


def cpu_seconds(server: Server) -> float:
    """CPU seconds of a server's processes."""
    times = [process.cpu_times() for process in server.family()]
    return float(sum(t.user + t.system for t in times))


def requests(server: Server, path: str, data: bytes, clients: int, multipart: bool = False) -> Turn:
    """CPU seconds of a server for a number of requests."""
    client = httpx.Client(timeout=120, limits=httpx.Limits(max_connections=clients))
    # stock BentoML answers 500 where the name does not fit the bytes
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    body: dict[str, Any] = (
        {"files": {"image": (f"a.{kind}", data, f"image/{kind}")}} if multipart else {"content": data}
    )

    def one(_: int) -> None:
        client.post(server.url + path, **body).raise_for_status()

    def turn(count: int) -> float:
        with ThreadPoolExecutor(clients) as pool:
            start = cpu_seconds(server)
            list(pool.map(one, range(count)))
            return cpu_seconds(server) - start

    turn(2 * clients)
    return turn


def memory_mib(server: Server) -> dict[str, list[float]]:
    """Resident and private memory of a server's processes in MiB, the parent first."""
    every = server.family()
    return {
        "rss": [round(p.memory_info().rss / 2**20, 1) for p in every],
        "private": [round(p.memory_full_info().uss / 2**20, 1) for p in every],
    }


def contestants(
    stack: ExitStack, args: argparse.Namespace, bundle: Path, facts: dict[str, Any]
) -> dict[str, Turn]:
    """Everything that takes turns."""
    image = encode(sample_image(args.size, args.size), args.format, quality=90)
    cores = usable_cores()
    turns = {
        "bare": bare(bundle, args.size, False, cores),
        "bare_labels_only": bare(bundle, args.size, True, cores),
        "bare_one_at_a_time": bare(bundle, args.size, False, 1),
    }
    for workers in args.workers:
        environ = {"PROTOSEG_MODEL": str(bundle), "PROTOSEG_WORKERS": str(workers)}
        server = stack.enter_context(Server(environ))
        facts[f"cold_start_s_{workers}"] = round(server.wait_ready(), 2)
        while len(server.workers()) < workers:
            time.sleep(0.1)
        time.sleep(1)
        path = "/v1/segment"
        turns[f"served_{workers}"] = requests(server, path, image, args.clients * workers)
        facts[f"memory_mib_{workers}"] = memory_mib(server)
        if workers == 1:
            turns["served_1_json"] = requests(server, f"{path}?output=json", image, args.clients)
            turns["served_1_multipart"] = requests(server, path, image, args.clients, multipart=True)
    stock = stack.enter_context(Server({"BENCH_BUNDLE": str(bundle)}, target=f"{BASELINES}:Stock"))
    facts["cold_start_s_stock"] = round(stock.wait_ready(), 2)
    turns["stock"] = requests(stock, "/segment", image, args.clients, multipart=True)
    for name, package in OTHERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"left out: {name} (pip install '{package}')", file=sys.stderr)
            continue
        server = stack.enter_context(Server({}, target=str(bundle), program=(f"benchmarks.serving_{name}",)))
        facts[f"cold_start_s_{name}"] = round(server.wait_ready(), 2)
        turns[name] = requests(server, "/segment", image, args.clients, multipart=name == "litserve")
    if args.checkpoint:
        environ = {"BENCH_CHECKPOINT": str(args.checkpoint)}
        uvicorn = ("uvicorn", "--log-level", "error", "--factory")
        fastapi = Server(environ, target=f"{BASELINES}:make_fastapi", program=uvicorn)
        stack.enter_context(fastapi)
        fastapi.wait_ready()
        turns["fastapi_torch"] = requests(fastapi, "/segment", image, args.clients)
    return turns


def measure(turns: dict[str, Turn], rounds: int, count: int) -> dict[str, list[float]]:
    """CPU milliseconds for each request, round by round; the order turns with the round."""
    names = list(turns)
    results: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            results[name].append(1000 * turns[name](count) / count)
        print(f"round {index + 1}/{rounds}: " + ", ".join(f"{n} {results[n][-1]:.1f}" for n in names))
    return results


def table(result: Result) -> str:
    """Processor time of a request, against the bare runtime."""
    shown = {
        "bare": "bare `session.run`, all outputs",
        "bare_labels_only": "bare `session.run`, labels only",
        "served_1": "this service, PNG mask",
        "served_1_multipart": "this service, multipart",
        "served_1_json": "this service, JSON with statistics",
        "served_2": "this service, two workers",
        "stock": "BentoML without our code",
        "litserve": "LitServe",
        "ray": "Ray Serve",
        "fastapi_torch": "FastAPI with torch",
    }
    ratios = result["bare_over_contestant"]
    rows = [
        [name, middle(result["cpu_ms"][key]), f"{ratios[key]['median']:.2f}x"]
        for key, name in shown.items()
        if key in result["cpu_ms"]
    ]
    settings = result["settings"]
    said = (
        f"{settings['size']}x{settings['size']} {settings['format']}, head {result['head']}, "
        f"{settings['clients']} clients, {settings['rounds']} interleaved rounds of {settings['requests']} "
        "requests: processor milliseconds a request (median and range), and requests for each processor "
        "second against the bare runtime that computes all outputs (median of the rounds' ratios)."
    )
    return f"{said}\n\n{markdown_table(['contestant', 'CPU ms', 'throughput'], rows)}"


def sizes_table(*results: Result) -> str:
    """The service against the labels-only graph, by size and format."""
    rows = []
    for result in results:
        settings, ratio = result["settings"], result["bare_labels_only_over_served"]["served_1"]
        rows.append([
            f"{settings['size']}x{settings['size']} {settings['format']}",
            middle(result["cpu_ms"]["bare_labels_only"]), middle(result["cpu_ms"]["served_1"]),
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
        ])  # fmt: skip
    return markdown_table(["image", "bare, labels only, ms", "this service, ms", "bare over service"], rows)


SIZES = ("serving_speed", "serving_speed_512_png", "serving_speed_1024_jpeg")
ANSWERS = {
    "serving_speed": Answer(
        "served against bare `session.run`, stock BentoML, FastAPI + torch",
        "python -m benchmarks.serving_speed --checkpoint CHECKPOINT",
    ),
    **{
        name: Answer(
            "the same for another size or format", f"python -m benchmarks.serving_speed --name {name}"
        )
        for name in SIZES[1:]
    },
}
BLOCKS = {
    "serving_speed": Block(table, ("serving_speed",), SERVING),
    "serving_sizes": Block(sizes_table, SIZES, SERVING),
}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and write ``results/serving_speed.json``."""
    command = parser(__doc__)
    add = command.add_argument
    add("bundle", nargs="?", help="bundle (default: a made network of about 50 ms at 512)")
    add("--checkpoint", type=Path, help="checkpoint to export at --size and to serve with FastAPI")
    add("--head", default="linear", choices=["linear", "prototype", "fused"], help="head to export")
    add("--size", type=int, default=512, help="side of the image in pixels")
    add("--format", default="JPEG", choices=["JPEG", "PNG"], help="image format sent")
    add("--workers", type=int, nargs="+", default=[1, 2], help="worker counts")
    add("--clients", type=int, default=2, help="requests at a time for each worker")
    add("--rounds", type=int, default=7, help="turns of every contestant")
    add("--requests", type=int, default=40, help="requests in a turn")
    add("--name", default="serving_speed", help="name of the result file")
    args = command.parse_args(argv)
    if args.checkpoint and importlib.util.find_spec("fastapi") is None:
        print("error: --checkpoint needs fastapi: pip install fastapi", file=sys.stderr)
        return 1
    facts: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if args.bundle:
            bundle = Path(args.bundle)
        elif args.checkpoint:
            bundle, args.checkpoint = export_for(args.checkpoint, args.size, args.head, Path(folder))
        else:
            bundle = make_bundle(folder, width=32, depth=2, crop=(512, 512))
        facts["network"] = read_manifest(bundle).name
        facts["head"] = read_manifest(bundle).graph.head
        turns = contestants(stack, args, bundle.resolve(), facts)
        before = os.getloadavg()[0]
        results = measure(turns, args.rounds, args.requests)

    def against(reference: str, names: Iterable[str]) -> dict[str, dict[str, float]]:
        pairs = {name: zip(results[reference], results[name], strict=True) for name in names}
        return {name: spread([mine / other for mine, other in pair]) for name, pair in pairs.items()}

    ratios = against("bare", results)
    figures = {
        "cpu_ms": {name: spread(values) for name, values in results.items()},
        "bare_over_contestant": ratios,
        "bare_labels_only_over_served": against(
            "bare_labels_only", [name for name in results if name.startswith("served")]
        ),
        "load_average_before": round(before, 2),
        **facts,
    }
    settings = {k: v for k, v in vars(args).items() if k not in ("name", "bundle", "checkpoint")}
    path = write_result(args.name, {"settings": settings, **figures})
    for name, ratio in ratios.items():
        print(f"{name:20s} {figures['cpu_ms'][name]['median']:8.1f} ms CPU   ratio {ratio['median']:.3f} "
              f"({ratio['min']:.3f} .. {ratio['max']:.3f})")  # fmt: skip
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
