"""The routes that BentoML does not make from API methods: model, samples, v2, metrics, reload, the page."""

from __future__ import annotations

import asyncio
from functools import cache, wraps
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protoseg.errors import UserError
from protoseg.explain.atlas import Atlas
from serving.errors import ServingError
from serving.http import inference_protocol as v2
from serving.http import instances, triton
from serving.http.docs_page import docs_html
from serving.http.openapi import openapi
from serving.http.respond import as_response, current_request, failed, incoming_of, model_record, to_json
from serving.http.routes import ROUTES
from serving.http.segment import NOT_EXPLAINED
from serving.model.model import Model
from serving.pixels.reasons import named_prototypes
from serving.settings import Settings
from serving.worker.metrics import render_metrics, totals
from serving.worker.signals import signal_siblings
from serving.worker.state import ServingState

_DEMO = Path(__file__).parents[1] / "demo"
_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css"}
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_PAGE_HEADERS = {
    "content-security-policy": _POLICY, "cache-control": "no-cache", "referrer-policy": "no-referrer",
}  # fmt: skip


@cache
def _demo_file(name: str) -> bytes:
    return (_DEMO / name).read_bytes()


def describe_model(model: Model, settings: Settings) -> dict[str, Any]:
    """Reply of ``GET /v1/model``."""
    manifest = model.manifest
    return {
        **model_record(model),
        "created": manifest.created,
        "file": model.bundle.artifact.name,
        "precision": model.bundle.artifact.precision,
        "head": manifest.graph.head,
        "runtime": model.runtime,
        "sample_agreement": model.equal_labels,
        "classes": [
            {"id": index, "name": item.name, "color": list(item.color)}
            for index, item in enumerate(manifest.classes)
        ],
        "ignore_index": manifest.ignore_index,
        "input": manifest.input.model_dump(),
        "outputs": list(model.outputs),
        "upsampling": model.upsampling,
        "tile_size": list(model.tile_size),
        "explains": model.atlas is not None,
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


def served_atlas(model: Model) -> Atlas:
    """The training patches of a model's prototypes.

    Raises:
        ServingError: 422 where the bundle has none.
    """
    if model.atlas is None:
        raise ServingError(422, "bad_output", NOT_EXPLAINED)
    return model.atlas


def _page(make: Any) -> Any:
    """An endpoint whose errors become statuses; what is no response becomes JSON."""

    @wraps(make)
    async def endpoint(self: Pages, request: Request) -> Response:
        try:
            value = await make(self, request)
        except Exception as error:
            return failed(current_request(), error)
        if isinstance(value, Response):
            return value
        return Response(to_json(value), media_type="application/json")

    return endpoint


class Pages:
    """One method for each ``page`` in the table of routes.

    Args:
        state: State of the worker.
    """

    def __init__(self, state: ServingState) -> None:
        self._state = state

    @_page
    async def model(self, request: Request) -> Any:
        """What is served."""
        with self._state.model as model:
            return describe_model(model, self._state.settings)

    @_page
    async def sample(self, request: Request) -> Any:
        """A sample image of the bundle."""
        with self._state.model as model:
            index = int(request.path_params["index"])
            if index >= len(model.manifest.samples):
                raise ServingError(404, "not_found", f"there is no sample {index}")
            path = model.bundle.folder / model.manifest.samples[index].image
            return Response(path.read_bytes(), media_type="image/png")

    @_page
    async def prototypes(self, request: Request) -> Any:
        """The prototypes with their patches."""
        with self._state.model as model:
            atlas = served_atlas(model)
            return {
                "model": model_record(model),
                "images": atlas.num_images,
                "prototypes": named_prototypes(atlas, [item.index for item in atlas.prototypes]),
            }

    @_page
    async def prototype(self, request: Request) -> Any:
        """Thumbnails of a prototype."""
        with self._state.model as model:
            item = served_atlas(model).by_index().get(int(request.path_params["index"]))
            if item is None or model.manifest.atlas is None:
                raise ServingError(404, "not_found", "there is no such prototype; see GET /v1/prototypes")
            path = model.bundle.folder / model.manifest.atlas.folder / item.strip
            return Response(path.read_bytes(), media_type="image/jpeg")

    @_page
    async def page(self, request: Request) -> Any:
        """The page to try the service on, and its files."""
        if not self._state.settings.ui:
            raise ServingError(404, "not_found", "the page is off (PROTOSEG_UI); see GET /docs.json")
        name = request.path_params.get("file", "index.html")
        return Response(_demo_file(name), media_type=_TYPES[Path(name).suffix], headers=_PAGE_HEADERS)

    @_page
    async def metrics(self, request: Request) -> Any:
        """Prometheus text."""
        text = await asyncio.to_thread(render_metrics)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @_page
    async def docs_page(self, request: Request) -> Any:
        """The description for people."""
        if not self._state.settings.ui:
            raise ServingError(404, "not_found", "pages are off (PROTOSEG_UI); see GET /openapi.json")
        return Response(
            docs_html(str(request.base_url).rstrip("/")), media_type=_TYPES[".html"], headers=_PAGE_HEADERS
        )

    @_page
    async def docs(self, request: Request) -> Any:
        """The OpenAPI description."""
        return openapi()

    @_page
    async def reload(self, request: Request) -> Any:
        """Check the bundle again and swap it in, here and in the other workers."""
        try:
            model = await asyncio.to_thread(self._state.reload)
        except UserError as error:
            raise ServingError(422, "bundle_refused", str(error)) from error
        return {"model": model_record(model), "other_workers": await asyncio.to_thread(signal_siblings)}

    @_page
    async def ping(self, request: Request) -> Any:
        """Ready: the gateway has answered for what is not."""
        return Response(b"", media_type="text/plain")

    @_page
    async def v1_model(self, request: Request) -> Any:
        """Model readiness."""
        with self._state.model as model:
            v2.check_model(model, request.path_params["name"], None)
            return {"name": model.manifest.name, "ready": True}

    @_page
    async def predict(self, request: Request) -> Any:
        """Segment images in JSON, in the worker's threads."""
        incoming, name = await incoming_of(request), request.path_params.get("name")
        return await as_response(
            self._state, incoming, lambda: instances.predict(self._state, incoming, name)
        )

    @_page
    async def invocations(self, request: Request) -> Any:
        """Segment an image, or images in JSON, in the worker's threads."""
        incoming = await incoming_of(request)
        attributes = request.headers.get(instances.CUSTOM_ATTRIBUTES, "")
        return await as_response(
            self._state, incoming, lambda: instances.invocations(self._state, incoming, attributes)
        )

    @_page
    async def v2_server(self, request: Request) -> Any:
        """Server metadata."""
        return v2.server_metadata()

    @_page
    async def v2_health(self, request: Request) -> Any:
        """Live, ready: the gateway has answered for what is not."""
        return {request.url.path.rsplit("/", 1)[-1]: True}

    @_page
    async def v2_model(self, request: Request) -> Any:
        """Model metadata."""
        with self._state.model as model:
            v2.check_model(model, request.path_params["name"], request.path_params.get("version"))
            return v2.model_metadata(model)

    @_page
    async def v2_ready(self, request: Request) -> Any:
        """Model readiness."""
        with self._state.model as model:
            v2.check_model(model, request.path_params["name"], request.path_params.get("version"))
            return {"name": model.manifest.name, "ready": True}

    @_page
    async def v2_index(self, request: Request) -> Any:
        """The models of this server."""
        with self._state.model as model:
            return triton.repository_index(model)

    @_page
    async def v2_config(self, request: Request) -> Any:
        """Model configuration."""
        with self._state.model as model:
            v2.check_model(model, request.path_params["name"], request.path_params.get("version"))
            return triton.model_config(model)

    @_page
    async def v2_stats(self, request: Request) -> Any:
        """Statistics of the model."""
        counts = await asyncio.to_thread(totals)
        with self._state.model as model:
            name = request.path_params.get("name", model.manifest.name)
            v2.check_model(model, name, request.path_params.get("version"))
            return triton.model_statistics(model, counts)

    @_page
    async def v2_infer(self, request: Request) -> Any:
        """Infer on a tensor, in the worker's threads."""
        incoming = await incoming_of(request)
        length = request.headers.get(v2.HEADER_LENGTH, "")
        name, version = request.path_params["name"], request.path_params.get("version")
        return await as_response(
            self._state, incoming, lambda: v2.infer(self._state, incoming, name, version, length)
        )


def make_pages(state: ServingState) -> Starlette:
    """The application with these routes.

    Args:
        state: State of the worker.
    """
    pages = Pages(state)
    return Starlette(
        routes=[
            Route(route.path, getattr(pages, route.page), methods=[route.methods[0]])
            for route in ROUTES
            if route.page
        ]
    )
