from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving.http.gateway import Gateway
from serving.http.respond import Answer, as_response, incoming_of
from serving.settings import Settings
from serving.worker.state import ServingState


class Peer:
    """One ASGI request whose body and disconnect the test controls."""

    def __init__(self, path: str = "/v1/segment", method: str = "POST", **headers: str) -> None:
        fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        self.scope = {
            "type": "http", "method": method, "path": path, "headers": fields, "query_string": b"",
            "client": ("10.0.0.1", 1), "http_version": "1.1", "scheme": "http", "server": ("x", 80),
        }  # fmt: skip
        self.incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    def feed(self, data: bytes, more: bool = False) -> None:
        self.incoming.put_nowait({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            assert self.status == 0
            self.status = message["status"]
            self.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            self.body += message.get("body", b"")

    @property
    def code(self) -> str:
        return self.headers["x-error-code"]


Work = Callable[[], Answer]


class Server:
    """The gateway before an application that computes ``work`` in the worker's threads."""

    def __init__(self, bundle: Path, work: Work, **settings: Any) -> None:
        values = {"model": str(bundle), "threads": 1, "access_log": False} | settings
        self.state = ServingState(Settings.model_validate(values))
        self.state.load()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            from starlette.requests import Request

            incoming = await incoming_of(Request(scope, receive))
            response = await as_response(self.state, incoming, work)
            await response(scope, receive, send)

        self.gateway = Gateway(app, self.state)

    def start(self, peer: Peer) -> asyncio.Task[None]:
        return asyncio.ensure_future(self.gateway(peer.scope, peer.incoming.get, peer.send))

    def start_several(
        self, count: int, data: bytes = b"x", more: bool = False
    ) -> tuple[list[Peer], list[asyncio.Task[None]]]:
        peers = [Peer() for _ in range(count)]
        for peer in peers:
            peer.feed(data, more)
        return peers, [self.start(peer) for peer in peers]


def answer() -> Answer:
    return Answer(b"ok", "text/plain")


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


def test_full_queue_refuses_and_recovers(bundle: Path) -> None:
    go = threading.Event()

    def work() -> Answer:
        assert go.wait(10)
        return answer()

    async def scenario() -> None:
        server = Server(bundle, work, queue=1)
        peers, tasks = server.start_several(5)
        await until(lambda: sum(peer.status == 503 for peer in peers) == 3)
        refused = next(peer for peer in peers if peer.status == 503)
        assert refused.code == "overloaded"
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["connection"] == "close"
        go.set()
        await asyncio.gather(*tasks)
        assert sorted(peer.status for peer in peers) == [200, 200, 503, 503, 503]
        again = Peer()
        again.feed(b"x")
        await server.start(again)
        assert (again.status, again.body) == (200, b"ok")
        assert server.gateway._admitted == 0
        assert server.gateway._body_bytes == 0
        server.state.close()

    asyncio.run(scenario())


def test_deadline_gives_504_and_waiting_work_is_never_done(bundle: Path) -> None:
    go = threading.Event()
    calls = []

    def work() -> Answer:
        calls.append(1)
        assert go.wait(10)
        return answer()

    async def scenario() -> None:
        server = Server(bundle, work, timeout=0.2, queue=4)
        peers, tasks = server.start_several(2)
        await asyncio.gather(*tasks)
        assert [(peer.status, peer.code) for peer in peers] == [(504, "timeout")] * 2
        go.set()
        server.state.close()
        assert len(calls) == 1
        assert server.gateway._admitted == 0

    asyncio.run(scenario())


def test_slow_body_gives_408(bundle: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer, body_timeout=0.1)
        peer = Peer()
        peer.feed(b"x", more=True)
        await server.start(peer)
        assert (peer.status, peer.code) == (408, "body_timeout")
        assert server.gateway._body_bytes == 0
        server.state.close()

    asyncio.run(scenario())


def test_slow_bodies_do_not_take_places_of_others(bundle: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer, queue=0, body_timeout=5)
        slow, tasks = server.start_several(20, more=True)
        await until(lambda: server.gateway._body_bytes == 20)
        quick = Peer()
        quick.feed(b"x")
        await server.start(quick)
        assert quick.status == 200
        for peer in slow:
            peer.leave()
        await asyncio.gather(*tasks)
        assert server.gateway._body_bytes == 0
        server.state.close()

    asyncio.run(scenario())


def test_memory_of_bodies_is_bounded(bundle: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer, max_body=100, body_memory=250)
        holding, tasks = server.start_several(2, b"x" * 100, more=True)
        await until(lambda: server.gateway._body_bytes == 200)
        late = Peer()
        late.feed(b"x" * 100, more=True)
        await server.start(late)
        assert (late.status, late.code) == (503, "overloaded")
        for peer in holding:
            peer.leave()
        await asyncio.gather(*tasks)
        server.state.close()

    asyncio.run(scenario())


def test_a_client_that_leaves_frees_its_place(bundle: Path) -> None:
    go = threading.Event()
    calls = []

    def work() -> Answer:
        calls.append(1)
        assert go.wait(10)
        return answer()

    async def scenario() -> None:
        server = Server(bundle, work, queue=1)
        busy, gone = Peer(), Peer()
        for peer in (busy, gone):
            peer.feed(b"x")
        tasks = [server.start(busy)]
        await until(lambda: len(calls) == 1)
        tasks.append(server.start(gone))
        await until(lambda: server.gateway._admitted == 2)
        gone.leave()
        await tasks[1]
        assert (gone.status, server.gateway._admitted) == (0, 1)
        go.set()
        await tasks[0]
        assert busy.status == 200
        server.state.close()
        assert len(calls) == 1

    asyncio.run(scenario())


def test_a_client_that_leaves_during_its_body(bundle: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer)
        peer = Peer()
        peer.feed(b"x", more=True)
        peer.leave()
        await server.start(peer)
        assert peer.status == 0
        assert server.gateway._body_bytes == 0
        server.state.close()

    asyncio.run(scenario())


def test_draining_and_unloaded_servers_refuse(bundle: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer)
        server.state.draining = True
        for path, method in (("/v1/segment", "POST"), ("/readyz", "GET"), ("/v2/health/ready", "GET")):
            peer = Peer(path, method)
            peer.feed(b"")
            await server.start(peer)
            assert (peer.status, peer.code) == (503, "draining")
        server.state.close()
        empty = Server(tmp_path, answer)
        peer = Peer()
        peer.feed(b"x")
        await empty.start(peer)
        assert (peer.status, peer.code) == (503, "not_ready")
        assert "manifest.json" in json.loads(peer.body)["error"]["message"]
        empty.state.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["raises", "silent"])
def test_an_application_that_fails_is_500(bundle: Path, kind: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "raises":
            raise RuntimeError("secret")

    async def scenario() -> None:
        server = Server(bundle, answer)
        server.gateway.app = app
        peer = Peer("/v1/model", "GET")
        await server.start(peer)
        assert (peer.status, peer.code) == (500, "internal")
        assert b"secret" not in peer.body
        server.state.close()

    asyncio.run(scenario())


def test_websockets_are_closed(bundle: Path) -> None:
    async def scenario() -> None:
        server = Server(bundle, answer)
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        await server.gateway({"type": "websocket"}, asyncio.Queue[Any]().get, send)
        assert sent == [{"type": "websocket.close", "code": 1008}]
        server.state.close()

    asyncio.run(scenario())
