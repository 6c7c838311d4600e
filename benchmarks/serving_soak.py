"""Load and fuzz: many clients for a while, many requests, many damaged images; statuses, latency, memory.

Loads 127.0.0.1 only. Example: ``python -m benchmarks.serving_soak --clients 64 --seconds 60 --requests 10000
--fuzz 10000 --images 10000``
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image

from benchmarks.common import SERVING, Answer, Block, Result, markdown_table, parser, write_result
from benchmarks.nearest_color import encode, sample_image
from benchmarks.serving_bundle import make_bundle
from benchmarks.serving_server import Server
from serving.errors import ServingError
from serving.pixels.decode import ImageLimits, decode
from serving.settings import FORMATS


def overload(server: Server, image: bytes, clients: int, seconds: float) -> dict[str, Any]:
    """``clients`` at once for a while, each without a pause."""
    end = time.monotonic() + seconds
    before = server.memory_mib()
    series: list[float] = []

    def client(_: int) -> list[tuple[str, float]]:
        answers = []
        with httpx.Client(timeout=60) as http:
            while time.monotonic() < end:
                start = time.monotonic()
                try:
                    status = str(http.post(f"{server.url}/v1/segment", content=image).status_code)
                except httpx.HTTPError as error:
                    status = type(error).__name__
                answers.append((status, time.monotonic() - start))
        return answers

    with ThreadPoolExecutor(clients) as pool:
        running = pool.map(client, range(clients))
        while time.monotonic() < end:
            time.sleep(1)
            series.append(server.memory_mib())
        answers = [answer for of_client in running for answer in of_client]
    statuses = Counter(status for status, _ in answers)
    latencies = [passed for status, passed in answers if status == "200"]
    times = (1000 * np.percentile(latencies or [0.0], (50, 95, 99, 100))).round(1).tolist()
    return {
        "clients": clients, "seconds": seconds, "statuses": dict(statuses),
        "latency_ms_of_200": dict(zip(("p50", "p95", "p99"), times, strict=False)),
        "slowest_ms_of_200": times[-1],
        "memory_mib": {"before": before, "max": max(series, default=0), "after": server.memory_mib()},
        "only_200_and_503": set(statuses) <= {"200", "503"},
    }  # fmt: skip


def endurance(server: Server, count: int) -> dict[str, Any]:
    """``count`` requests of changing sizes and outputs; memory after every tenth of them."""
    rng = np.random.default_rng(1)
    images = [
        encode(sample_image(int(h), int(w)), kind)
        for h, w in rng.integers(32, 320, (40, 2))
        for kind in ("JPEG", "PNG")
    ]
    outputs = ("mask", "mask", "mask", "json", "rle", "polygons", "overlay", "confidence", "hf")
    statuses: Counter[int] = Counter()
    series = [server.memory_mib()]
    with httpx.Client(timeout=60) as http:

        def one(number: int) -> int:
            path = f"{server.url}/v1/segment?output={outputs[number % len(outputs)]}"
            return http.post(path, content=images[number % len(images)]).status_code

        with ThreadPoolExecutor(2) as pool:
            for part in range(10):
                first, last = part * count // 10, (part + 1) * count // 10
                statuses.update(pool.map(one, range(first, last)))
                series.append(server.memory_mib())
    late = series[len(series) // 2 :]
    slope = statistics.linear_regression(range(len(late)), late).slope
    return {
        "requests": count, "statuses": {str(k): v for k, v in statuses.items()}, "memory_mib": series,
        "growth_mib_second_half": round(late[-1] - late[0], 1),
        "slope_mib_per_1000": round(slope * 10_000 / count, 2),
    }  # fmt: skip


def pick(rng: np.random.Generator, items: Sequence[Any]) -> Any:
    """One of them."""
    return items[int(rng.integers(len(items)))]


def mutated(rng: np.random.Generator, seeds: list[bytes]) -> bytes:
    """A damaged copy of a seed: bytes changed, cut, doubled or swapped with another's."""
    data = bytearray(pick(rng, seeds))
    kind = rng.random()
    if kind < 0.2:
        del data[int(rng.integers(len(data))) :]
    elif kind < 0.3:
        other = pick(rng, seeds)
        cut = int(rng.integers(len(data)))
        data[cut:] = other[int(rng.integers(len(other))) :]
    elif kind < 0.4:
        start = int(rng.integers(len(data)))
        data[start:start] = data[start : start + int(rng.integers(1, 200))]
    for _ in range(int(rng.integers(0, 6))):
        if data:
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def fuzz_request(rng: np.random.Generator, data: bytes) -> dict[str, Any]:
    """Arguments of one hostile request."""
    words = ["mask", "json", "rle", "polygons", "overlay", "hf", "confidence", "\0", "é", "x" * 300, ""]
    form = "multipart/form-data"
    kinds = [form, f"{form}; boundary=a", "image/png", "application/octet-stream", "text/plain",
             "image/svg+xml"]  # fmt: skip
    names = ["output", "alpha", "classes", "tile", "size", "simplify", "format", "nope"]
    params = {pick(rng, names): pick(rng, words) for _ in range(int(rng.integers(3)))}
    draw = rng.random()
    if draw < 0.6:
        return {"content": data, "params": params}
    if draw < 0.85:
        field = pick(rng, ["image", "file", "other"])
        return {"files": {field: (pick(rng, words), data)}, "params": params}
    return {"content": data, "params": params, "headers": {"content-type": pick(rng, kinds)}}


def seed_images() -> list[bytes]:
    """Small images of every format and kind that the decoder knows."""
    pixels = sample_image(48, 64)
    grey, image = pixels[..., 0], Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    return [
        encode(pixels), encode(pixels, "JPEG"), encode(pixels, "JPEG", progressive=True),
        encode(pixels, "JPEG", exif=exif), encode(grey, "JPEG"), encode(pixels, "WEBP"),
        encode(pixels, "WEBP", lossless=True), encode(pixels, "BMP"), encode(grey, "BMP"),
        encode(grey), encode(grey.astype(np.uint16) * 257), encode(pixels, "TIFF"),
        encode(pixels, "TIFF", compression="tiff_lzw"),
        *(encode(pixels, kind, **frames) for kind in ("WEBP", "PNG", "GIF")),
        encode(image.quantize(17), transparency=3), encode(image.convert("CMYK"), "JPEG"),
        encode(image.convert("RGBA"), interlace=1),
    ]  # fmt: skip


def decode_mutated(count: int, seed: int, failures: Path) -> dict[str, Any]:
    """``count`` mutated images through the decoder in this process; it may only refuse as documented."""
    rng = np.random.default_rng(seed)
    seeds = seed_images()
    limits = ImageLimits(1_000_000, 4096, FORMATS)
    outcomes: Counter[str] = Counter()
    bad: list[str] = []
    slowest = 0.0
    process = psutil.Process()
    series = [round(process.memory_info().rss / 2**20, 1)]
    for number in range(count):
        data = mutated(rng, seeds)
        start = time.thread_time()
        try:
            decode(data, limits, (1, 3, 4)[number % 3])
            outcomes["decoded"] += 1
        except ServingError as error:
            outcomes[f"{error.status} {error.code}"] += 1
        # what this looks for is any other exception
        except Exception as error:
            failures.mkdir(parents=True, exist_ok=True)
            (failures / f"image{number}.bin").write_bytes(data)
            bad.append(f"{number}: {type(error).__name__}")
        slowest = max(slowest, time.thread_time() - start)
        if (number + 1) % max(1, count // 10) == 0:
            series.append(round(process.memory_info().rss / 2**20, 1))
    return {
        "images": count, "seed": seed, "outcomes": dict(outcomes.most_common()), "failures": bad[:20],
        "slowest_cpu_ms": round(1000 * slowest, 1), "memory_mib": series,
    }  # fmt: skip


def fuzz(server: Server, count: int, seed: int, failures: Path) -> dict[str, Any]:
    """``count`` mutated requests; every 5xx but 503 and 504 is a failure and is kept as a file."""
    rng = np.random.default_rng(seed)
    seeds = seed_images()
    paths = [*3 * ["/v1/segment"], "/v1/segment/batch", "/v2/models/nearest-color/infer"]
    statuses: Counter[str] = Counter()
    bad: list[str] = []
    before, peak = server.memory_mib(), 0.0
    workers = {worker.pid for worker in server.workers()}
    with httpx.Client(timeout=60) as http:
        for number in range(count):
            data = mutated(rng, seeds)
            path = pick(rng, paths)
            try:
                status = http.post(server.url + path, **fuzz_request(rng, data)).status_code
            except httpx.HTTPError as error:
                status = 0
                bad.append(f"{number}: {type(error).__name__}")
            statuses[str(status)] += 1
            if status == 0 or (status >= 500 and status not in (503, 504)):
                failures.mkdir(parents=True, exist_ok=True)
                (failures / f"{number}.bin").write_bytes(data)
                bad.append(f"{number}: {status} {path}")
            if number % 100 == 0:
                peak = max(peak, server.memory_mib())
    return {
        "requests": count, "seed": seed, "statuses": dict(statuses), "failures": bad[:20],
        "memory_mib": {"before": before, "max": peak, "after": server.memory_mib()},
        "same_workers": workers == {worker.pid for worker in server.workers()},
    }  # fmt: skip


def table(result: Result) -> str:
    """Overload, endurance and mutated requests."""
    over, endure, fuzz = result["overload"], result["endurance"], result["fuzz"]

    def statuses(part: dict[str, Any]) -> str:
        return ", ".join(f"{count:,} x {code}" for code, count in sorted(part["statuses"].items()))

    times = over["latency_ms_of_200"]
    rows = [
        [
            f"{over['clients']} clients for {over['seconds']:.0f} s",
            statuses(over),
            f"{over['memory_mib']['before']:.0f} to {over['memory_mib']['max']:.0f}",
            f"accepted ones: p50 {times['p50']:.0f} ms, p99 {times['p99']:.0f} ms",
        ],
        [
            f"{endure['requests']:,} requests in a row",
            statuses(endure),
            f"{endure['memory_mib'][0]:.0f} to {endure['memory_mib'][-1]:.0f}",
            f"growth in the second half {endure['growth_mib_second_half']:.1f} MiB",
        ],
        [
            f"{fuzz['requests']:,} mutated requests",
            statuses(fuzz),
            f"{fuzz['memory_mib']['before']:.0f} to {fuzz['memory_mib']['max']:.0f}",
            f"{len(fuzz['failures'])} wrong answers; "
            + ("no worker died" if fuzz["same_workers"] else "a worker was replaced"),
        ],
    ]
    return markdown_table(["load", "answers", "worker MiB", "what else"], rows)


ANSWERS = {
    "serving_decoder": Answer(
        "10,000 damaged images through the decoder",
        "python -m benchmarks.serving_soak --images 10000 --name serving_decoder",
    ),
    "serving_soak": Answer("memory and answers under load", "python -m benchmarks.serving_soak"),
}
BLOCKS = {"serving_soak": Block(table, ("serving_soak",), SERVING)}


def main(argv: list[str] | None = None) -> int:
    """Run the parts asked for and write a result; exit code 1 when a promise is broken."""
    command = parser(__doc__)
    add = command.add_argument
    add("bundle", nargs="?", help="bundle (default: a made network)")
    add("--clients", type=int, default=64, help="clients at once")
    add("--seconds", type=float, default=0, help="seconds of overload (0: none)")
    add("--requests", type=int, default=0, help="requests of the endurance run (0: none)")
    add("--fuzz", type=int, default=0, help="mutated requests (0: none)")
    add("--images", type=int, default=0, help="mutated images for the decoder alone (0: none)")
    add("--seed", type=int, default=0, help="seed of the mutations")
    add("--workers", type=int, default=1, help="worker processes")
    add("--width", type=int, default=16, help="channels of the made network")
    add("--failures", default="fuzz_failures", help="folder for inputs that broke the server")
    add("--name", default="serving_soak", help="name of the result file")
    args = command.parse_args(argv)
    result: dict[str, Any] = {}
    if args.images:
        result["decoder"] = decode_mutated(args.images, args.seed, Path(args.failures))
    if args.seconds or args.requests or args.fuzz:
        result |= serve_and_load(args)
    for name, part in result.items():
        print(name, part)
    print(write_result(args.name, {"settings": vars(args), **result}))
    broken = not result.get("overload", {}).get("only_200_and_503", True)
    return 1 if broken or any(part.get("failures") for part in result.values()) else 0


def serve_and_load(args: argparse.Namespace) -> dict[str, Any]:
    """The parts that need a server."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(args.bundle).resolve() if args.bundle else make_bundle(folder, width=args.width)
        # what a request pins until its deadline would look like a leak
        environ = {"PROTOSEG_WORKERS": str(args.workers), "PROTOSEG_ACCESS_LOG": "0"}
        with Server({"PROTOSEG_MODEL": str(bundle), **environ}) as server:
            server.wait_ready()
            if args.seconds:
                image = encode(sample_image(256, 256), "JPEG")
                result["overload"] = overload(server, image, args.clients, args.seconds)
            if args.requests:
                result["endurance"] = endurance(server, args.requests)
            if args.fuzz:
                result["fuzz"] = fuzz(server, args.fuzz, args.seed, Path(args.failures))
    return result


if __name__ == "__main__":
    sys.exit(main())
