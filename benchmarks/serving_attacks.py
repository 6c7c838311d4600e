"""The attack table: stock BentoML and this service under the same hostile requests, on 127.0.0.1 only.

Every attack is bounded in bytes and time; the servers may use at most ``--memory`` GiB of address space.
Example: ``python -m benchmarks.serving_attacks``
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np

from benchmarks.common import SERVING, Answer, Block, Result, markdown_table, parser, write_result
from benchmarks.nearest_color import encode, sample_image
from benchmarks.serving_bundle import make_bundle
from benchmarks.serving_server import Server

Attack = Callable[["Target"], str]


class Target:
    """A running server and where its segmentation is."""

    def __init__(self, server: Server, path: str) -> None:
        self.server = server
        self.path = path
        self.image = encode(sample_image(256, 256))

    def send(self, timeout: float = 60.0, **request: Any) -> str:
        """Status and code of an answer."""
        try:
            response = httpx.post(self.server.url + self.path, timeout=timeout, **request)
        except httpx.HTTPError as error:
            return f"no answer ({type(error).__name__})"
        try:
            return f"{response.status_code} {response.json()['error']['code']}"
        except (ValueError, KeyError, TypeError):
            return str(response.status_code)

    def post(self, data: bytes, timeout: float = 60.0) -> str:
        """The answer to a file."""
        return self.send(timeout, files={"image": ("a.png", data, "image/png")})

    def raw(self, data: bytes) -> socket.socket:
        """A connection that has sent ``data``."""
        peer = socket.create_connection(("127.0.0.1", self.server.port), timeout=30)
        peer.sendall(data)
        return peer

    def head(self, *lines: str) -> bytes:
        """A request head."""
        return "\r\n".join([f"POST {self.path} HTTP/1.1", "Host: x", *lines, "", ""]).encode()

    def healthy(self) -> bool:
        """Whether an ordinary request is answered."""
        return self.post(self.image, timeout=30).startswith("200")


def first_line(peer: socket.socket, seconds: float) -> str:
    """What a raw connection answers within a time."""
    peer.settimeout(seconds)
    start = time.monotonic()
    try:
        data = peer.recv(200)
    except TimeoutError:
        return f"open after {seconds:g} s"
    except OSError:
        return f"reset after {time.monotonic() - start:.1f} s"
    finally:
        peer.close()
    if not data:
        return f"closed after {time.monotonic() - start:.1f} s"
    return data.split(b"\r\n")[0].decode("latin-1").removeprefix("HTTP/1.1 ")


# a multipart body with one file: its header, and what stands before and after the file
FORM = "Content-Type: multipart/form-data; boundary=xyzzy"
FORM_START = b'--xyzzy\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
FORM_END = b"\r\n--xyzzy--\r\n"
MIB = bytes(1 << 20)


def large_body(target: Target, mib: int) -> str:
    """A multipart body of so many MiB, in pieces."""
    length = len(FORM_START) + mib * len(MIB) + len(FORM_END)
    peer = target.raw(target.head(FORM, f"Content-Length: {length}") + FORM_START)
    return send_long(peer, MIB, mib, FORM_END)


def chunked_body(target: Target, mib: int) -> str:
    """A chunked body that goes on and on."""
    head = target.head("Content-Type: application/octet-stream", "Transfer-Encoding: chunked")
    return send_long(target.raw(head), b"100000\r\n" + MIB + b"\r\n", mib, b"0\r\n\r\n")


def send_long(peer: socket.socket, piece: bytes, count: int, end: bytes) -> str:
    """Send ``count`` pieces of a MiB and ``end``; the answer, and after how much of the body."""
    sent = 0
    try:
        while sent < count:
            peer.sendall(piece)
            sent += 1
        peer.sendall(end)
    except OSError:
        peer.close()
        return f"refused after {sent} MiB"
    return f"{first_line(peer, 60)} after {sent} MiB"


def slow_body(target: Target, seconds: float) -> str:
    """A body of which one byte a second arrives."""
    peer = target.raw(target.head("Content-Type: application/octet-stream", "Content-Length: 1000"))
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(1):
            with contextlib.suppress(OSError):
                peer.send(b"x")

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        return first_line(peer, seconds)
    finally:
        stop.set()
        thread.join()


def random_paths(target: Target, count: int) -> str:
    """Many paths that do not exist."""
    with httpx.Client(timeout=60) as client:
        for number in range(count):
            client.get(f"{target.server.url}/random/{number}")
        start = time.monotonic()
        try:
            text = client.get(f"{target.server.url}/metrics").text
        except httpx.HTTPError as error:
            return f"/metrics: {type(error).__name__}"
    return f"/metrics {len(text) // 1024} KiB in {time.monotonic() - start:.1f} s"


def disconnects(target: Target, count: int) -> str:
    """Clients that leave in the middle of their body, and after it."""
    body = FORM_START + target.image + FORM_END
    for number in range(count):
        sent = body if number % 2 else body[: len(body) // 2]
        target.raw(target.head(FORM, f"Content-Length: {len(body)}") + sent).close()
    return "healthy" if target.healthy() else "no answer afterwards"


def attacks(args: argparse.Namespace) -> dict[str, Attack]:
    """All attacks by name."""
    bomb = encode(np.zeros((args.bomb_side, args.bomb_side), np.bool_), compress_level=9)
    return {
        "text instead of an image": lambda t: t.post(b"hello"),
        "bad multipart": lambda t: t.send(
            content=b"abc", headers={"content-type": "multipart/form-data; boundary=zz"}
        ),
        "JPEG labelled as PNG, cut short": lambda t: t.post(b"\xff\xd8\xff\xe0" + bytes(200)),
        "lying Content-Length (1 GB, 2 bytes sent)": lambda t: first_line(
            t.raw(t.head("Content-Type: image/png", f"Content-Length: {10**9}") + b"ab"), args.patience
        ),
        "head that never ends": lambda t: first_line(t.raw(b"POST / HTTP/1.1\r\nHost: x\r\n"), args.patience),
        "body of one byte a second": lambda t: slow_body(t, args.patience),
        f"{args.paths} random paths": lambda t: random_paths(t, args.paths),
        f"{args.disconnects} disconnects": lambda t: disconnects(t, args.disconnects),
        f"{args.body_mib} MiB body": lambda t: large_body(t, args.body_mib),
        f"chunked body of {args.body_mib} MiB": lambda t: chunked_body(t, args.body_mib),
        f"PNG of {args.bomb_side}x{args.bomb_side} in {len(bomb) // 1024} KiB": lambda t: t.post(bomb),
    }


def attack(target: Target, run: Attack) -> dict[str, Any]:
    """Outcome, seconds and memory of one attack, and whether the server is well afterwards."""
    before, peak = target.server.memory_mib(), 0.0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.05):
            peak = max(peak, target.server.memory_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    start = time.monotonic()
    try:
        outcome = run(target)
    except OSError as error:
        outcome = type(error).__name__
    seconds = time.monotonic() - start
    done.set()
    thread.join()
    return {
        "outcome": outcome, "seconds": round(seconds, 1), "before_mib": round(before),
        "peak_mib": round(max(peak, before)), "after_mib": round(target.server.memory_mib()),
        "healthy_after": target.healthy(),
    }  # fmt: skip


def table(result: Result) -> str:
    """The same hostile requests against stock BentoML and the service."""
    rows = []
    for attack, by_server in result["table"].items():
        row = [attack]
        for server in ("stock", "protoseg"):
            seen = by_server[server]
            row += [str(seen["outcome"]), f"{seen['peak_mib']:,}"]
        rows.append(row)
    head = ["request", "stock BentoML", "peak MiB", "protoseg", "peak MiB"]
    said = "The same requests against BentoML without our code and against the service."
    return f"{said}\n\n{markdown_table(head, rows)}"


ANSWERS = {
    "serving_attacks": Answer("hostile requests before and after", "python -m benchmarks.serving_attacks")
}
BLOCKS = {"serving_attacks": Block(table, ("serving_attacks",), SERVING)}


def main(argv: list[str] | None = None) -> int:
    """Attack both servers and write ``results/serving_attacks.json``."""
    command = parser(__doc__)
    add = command.add_argument
    add("--paths", type=int, default=5000, help="random paths")
    add("--body-mib", type=int, default=300, help="size of the large body in MiB")
    add("--bomb-side", type=int, default=9000, help="side of the PNG bomb in pixels")
    add("--disconnects", type=int, default=200, help="clients that leave early")
    add("--patience", type=float, default=30.0, help="seconds to wait for slow attacks")
    add("--memory", type=float, default=12.0, help="address space of a server in GiB")
    add("--only", choices=["stock", "protoseg"], help="attack one server only")
    add("--name", default="serving_attacks", help="name of the result file")
    args = command.parse_args(argv)
    limit = int(args.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(folder)
        stock = ({"BENCH_BUNDLE": str(bundle)}, "benchmarks.serving_baselines:Stock", "/segment")
        ours = ({"PROTOSEG_MODEL": str(bundle)}, "serving:svc", "/v1/segment")
        for name, (environ, target, path) in {"stock": stock, "protoseg": ours}.items():
            if args.only not in (None, name):
                continue
            with Server(environ, target=target) as server:
                server.wait_ready()
                victim = Target(server, path)
                assert victim.healthy(), server.text()
                for title, run in attacks(args).items():
                    table.setdefault(title, {})[name] = row = attack(victim, run)
                    print(f"{name:9s} {title}: {row}", flush=True)
    verdicts = Counter(row["healthy_after"] for rows in table.values() for row in rows.values())
    print(write_result(args.name, {"settings": vars(args), "table": table}))
    return 0 if args.only == "stock" or verdicts[True] else 1


if __name__ == "__main__":
    sys.exit(main())
