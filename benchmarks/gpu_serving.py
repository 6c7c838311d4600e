"""Requests per second of the service on a GPU, with and without batches, and on the CPU of the same machine.

Many clients send the same JPEG at a time and read the mask as PNG. Answers per second and milliseconds of an
answer, in turns. Masks are compared with those of the first contestant. All but the first need a CUDA device.
Examples::

    python -m benchmarks.gpu_serving runs/bundle_gpu --clients 32
    python -m benchmarks.gpu_serving runs/quickstart/bundle --only cpu --clients 4
"""

from __future__ import annotations

import io
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from benchmarks.common import RESULTS, Answer, parser, spread, write_result
from benchmarks.nearest_color import encode
from benchmarks.serving_server import Server
from export.proof.samples import read_pixels
from protoseg.manifest import read_manifest

CONTESTANTS: dict[str, dict[str, str]] = {
    "cpu": {"PROTOSEG_DEVICE": "cpu"},
    "gpu, fp32, one at a time": {"PROTOSEG_DEVICE": "cuda", "PROTOSEG_BATCH_MAX": "1"},
    "gpu, fp32, batches of 8": {"PROTOSEG_DEVICE": "cuda", "PROTOSEG_BATCH_MAX": "8"},
    "gpu, fp16, batches of 8": {
        "PROTOSEG_DEVICE": "cuda", "PROTOSEG_BATCH_MAX": "8", "PROTOSEG_PRECISION": "fp16",
    },
}  # fmt: skip


def turn(url: str, data: bytes, clients: int, count: int) -> tuple[float, list[float]]:
    """Answers per second of ``count`` requests, and seconds of each."""
    limits = httpx.Limits(max_connections=clients)
    with httpx.Client(timeout=60, limits=limits) as client, ThreadPoolExecutor(clients) as pool:

        def one(_: int) -> float:
            start = time.perf_counter()
            client.post(url, content=data).raise_for_status()
            return time.perf_counter() - start

        start = time.perf_counter()
        seconds = list(pool.map(one, range(count)))
        return count / (time.perf_counter() - start), seconds


def mask(url: str, data: bytes) -> Any:
    """The served mask as an array."""
    answer = httpx.post(url, content=data, timeout=60).raise_for_status()
    return np.asarray(Image.open(io.BytesIO(answer.content)))


ANSWERS = {
    "gpu_serving": Answer(
        "requests per second on a GPU, with and without batches, and on the CPU beside it",
        "python -m benchmarks.gpu_serving BUNDLE",
    )
}


def main(argv: list[str] | None = None) -> int:
    """Measure and write ``results/NAME.json``."""
    command = parser(__doc__)
    command.add_argument("bundle", type=Path, help="bundle with fp32 and fp16")
    command.add_argument("--clients", type=int, default=32, help="requests at a time")
    command.add_argument("--requests", type=int, default=400, help="requests in a turn")
    command.add_argument("--rounds", type=int, default=3)
    command.add_argument("--workers", type=int, default=1, help="worker processes of each service")
    command.add_argument(
        "--only", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS), help="leave the others out"
    )
    command.add_argument("--name", default="gpu_serving", help="name of the result file")
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of the result file")
    args = command.parse_args(argv)
    manifest = read_manifest(args.bundle)
    data = encode(read_pixels(args.bundle / manifest.samples[0].image), "JPEG", quality=95)
    rates: dict[str, list[float]] = {name: [] for name in args.only}
    delays: dict[str, list[float]] = {name: [] for name in args.only}
    masks: dict[str, Any] = {}
    facts: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        urls = {}
        for name in args.only:
            common = {
                "PROTOSEG_MODEL": str(args.bundle.resolve()), "PROTOSEG_WORKERS": str(args.workers),
                "PROTOSEG_QUEUE": str(2 * args.clients),
            }  # fmt: skip
            server = stack.enter_context(Server(common | CONTESTANTS[name]))
            facts[name] = {"cold_start_s": round(server.wait_ready(), 2)}
            urls[name] = f"{server.url}/v1/segment"
            info = httpx.get(f"{server.url}/v1/model", timeout=30)
            if info.status_code == 200:
                facts[name]["runtime"] = info.json()["runtime"]
            turn(urls[name], data, args.clients, 2 * args.clients)
            masks[name] = mask(urls[name], data)
        for number in range(args.rounds):
            for name, url in urls.items():
                rate, seconds = turn(url, data, args.clients, args.requests)
                rates[name].append(rate)
                delays[name] += seconds
                print(f"round {number + 1}/{args.rounds}, {name}: {rate:.1f} requests/s", flush=True)
    reference = masks[args.only[0]]
    results = {}
    for name in args.only:
        percentiles = statistics.quantiles(delays[name], n=100)
        results[name] = {
            "requests_per_s": spread(rates[name]),
            "ms_p50": 1000 * percentiles[49], "ms_p95": 1000 * percentiles[94],
            "mask_equal_to_first": float((masks[name] == reference).mean()), **facts[name],
        }  # fmt: skip
        print(
            f"{name}: {results[name]['requests_per_s']['median']:.0f} requests/s, p50 "
            f"{results[name]['ms_p50']:.1f} ms, p95 {results[name]['ms_p95']:.1f} ms, mask "
            f"{100 * results[name]['mask_equal_to_first']:.3f} % as the first one's, {facts[name]}"
        )
    settings_used = {"clients": args.clients, "requests": args.requests, "workers": args.workers}
    size = list(reference.shape[:2])
    print(write_result(args.name, {"network": manifest.name, "image": size, "settings": settings_used,
                                   "contestants": results}, args.results))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
