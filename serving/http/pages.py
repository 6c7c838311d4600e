"""The routes that BentoML does not make from API methods: model, samples, v2, metrics, reload, the page."""

from __future__ import annotations

import asyncio
from functools import cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.errors import BundleError, ServingError
from serving.http import inference_protocol as v2
from serving.http.openapi import openapi
from serving.http.respond import answer, as_response, incoming_of
from serving.http.segment import model_record, to_json
from serving.model.model import Engine
from serving.settings import Settings
from serving.worker.metrics import render_metrics
from serving.worker.signals import signal_siblings
from serving.worker.state import ServingState

_DEMO = Path(__file__).parents[1] / "demo"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css"}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _demo_file(name: str) -> bytes:
    return (_DEMO / name).read_bytes()


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def describe_model(engine: Engine, settings: Settings) -> dict[str, Any]:
    """Reply of ``GET /v1/model``."""
    manifest = engine.manifest
    return {
        **model_record(engine),
        "created": manifest.created,
        "file": engine.bundle.artifact.name,
        "precision": engine.bundle.artifact.precision,
        "runtime": engine.runtime,
        "sample_agreement": engine.sample_agreement,
        "classes": [
            {"id": index, "name": item.name, "color": list(item.color)}
            for index, item in enumerate(manifest.classes)
        ],
        "ignore_index": manifest.ignore_index,
        "input": manifest.input.model_dump(),
        "outputs": list(engine.outputs),
        "upsampling": engine.upsampling,
        "tile_size": list(engine.tile_size),
        "samples": [f"/v1/samples/{index}" for index in range(len(manifest.samples))],
        "limits": {
            "max_body": settings.max_body,
            "max_pixels": settings.max_pixels,
            "max_side": settings.max_side,
            "formats": list(settings.formats),
        },
        "baseline": manifest.baseline.model_dump() if manifest.baseline else None,
        "training_metrics": manifest.training_metrics,
    }


def _with_engine(state: ServingState, make: Any) -> Response:
    with state.engine as engine:
        response: Response = make(engine)
        return response


def make_pages(state: ServingState) -> Starlette:
    """The application with these routes.

    Args:
        state: State of the worker.
    """

    async def model(request: Request) -> Response:
        def make(engine: Engine) -> Response:
            return _json(describe_model(engine, state.settings))

        return await answer(lambda: _with_engine(state, make))

    async def sample(request: Request) -> Response:
        def read() -> Response:
            with state.engine as engine:
                index = int(request.path_params["index"])
                if index >= len(engine.manifest.samples):
                    raise ServingError(404, "not_found", f"there is no sample {index}")
                path = engine.bundle.folder / engine.manifest.samples[index].image
                return Response(path.read_bytes(), media_type="image/png")

        return await answer(read)

    async def page(request: Request) -> Response:
        def read() -> Response:
            if not state.settings.ui:
                raise ServingError(404, "not_found", "the page is off (PROTOSEG_UI); see GET /docs.json")
            name = request.path_params.get("file", "index.html")
            headers = {"content-security-policy": _POLICY, "cache-control": "no-cache",
                       "referrer-policy": "no-referrer"}  # fmt: skip
            return Response(_demo_file(name), media_type=_TYPES[Path(name).suffix], headers=headers)

        return await answer(read)

    async def metrics_text(request: Request) -> Response:
        text = await asyncio.to_thread(render_metrics)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def docs(request: Request) -> Response:
        return _json(openapi())

    async def reload(request: Request) -> Response:
        def swap() -> Response:
            try:
                engine = state.reload()
            except BundleError as error:
                raise ServingError(422, "bundle_refused", str(error)) from error
            return _json({"model": model_record(engine), "other_workers": signal_siblings()})

        return await answer(swap, in_thread=True)

    async def v2_server(request: Request) -> Response:
        return _json(v2.server_metadata())

    async def v2_health(request: Request) -> Response:
        key = request.url.path.rsplit("/", 1)[-1]
        return _json({key: True})

    def check_name(engine: Engine, request: Request) -> None:
        v2.check_model(engine, request.path_params["name"], request.path_params.get("version"))

    async def v2_model(request: Request) -> Response:
        def make(engine: Engine) -> Response:
            check_name(engine, request)
            return _json(v2.model_metadata(engine))

        return await answer(lambda: _with_engine(state, make))

    async def v2_ready(request: Request) -> Response:
        def make(engine: Engine) -> Response:
            check_name(engine, request)
            return _json({"name": engine.manifest.name, "ready": True})

        return await answer(lambda: _with_engine(state, make))

    async def v2_infer(request: Request) -> Response:
        incoming = await incoming_of(request)
        length = request.headers.get(v2.HEADER_LENGTH, "")
        name, version = request.path_params["name"], request.path_params.get("version")
        return await as_response(state, incoming, lambda: v2.infer(state, incoming, name, version, length))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/demo/{file}", page),
            Route("/v1/model", model),
            Route("/v1/samples/{index}", sample),
            Route("/v1/reload", reload, methods=["POST"]),
            Route("/metrics", metrics_text),
            Route("/docs.json", docs),
            Route("/v2", v2_server),
            Route("/v2/health/live", v2_health),
            Route("/v2/health/ready", v2_health),
            *(
                Route(f"/v2/models/{{name}}{version}{path}", endpoint, methods=methods)
                for version in ("", "/versions/{version}")
                for path, endpoint, methods in (
                    ("", v2_model, ["GET"]),
                    ("/ready", v2_ready, ["GET"]),
                    ("/infer", v2_infer, ["POST"]),
                )
            ),
        ]
    )
