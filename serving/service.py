"""The BentoML service: ``bentoml serve serving:svc``."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import bentoml
from pydantic import ConfigDict, Field
from starlette.requests import Request

from protoseg.errors import UserError
from serving.errors import BundleError
from serving.http import segment as handlers
from serving.http.gateway import guard
from serving.http.pages import make_pages
from serving.http.respond import as_response, incoming_of
from serving.http.routes import SEGMENT, SEGMENT_ALIAS, SEGMENT_BATCH
from serving.model.bundle import check_bundle, find_bundle
from serving.settings import PROJECT_ROOT, Settings, load_settings
from serving.worker.bentoml_patches import (
    IODescriptor,
    Service,
    drop_middleware,
    explain_taken_port,
    forward_hangup,
    in_worker,
    install_protocol,
)
from serving.worker.log import configure_log
from serving.worker.parent import PARENT, tie_to_parent
from serving.worker.signals import install_worker_signals
from serving.worker.state import PINNED_BUNDLE, ServingState

logger = logging.getLogger(__name__)
_Png = Annotated[Path, bentoml.validators.ContentType("image/png")]


class SegmentInput(IODescriptor):  # type: ignore[misc]
    """An image as multipart file field, or as the whole body; parameters as form fields or in the query."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    image: Path = Field(description="The image: JPEG, PNG, WebP or BMP")
    output: str = Field("mask", description="mask, json, rle, polygons, overlay, confidence, agreement, hf")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """Hand the bytes on: no temporary file, no URL, no error of BentoML's own."""
        return cls.model_construct(image=await incoming_of(request), output="")


class BatchInput(SegmentInput):
    """Up to 16 images as multipart file fields called image."""

    image: list[Path] = Field(description="The images")  # type: ignore[assignment]
    output: str = Field("mask", description="as for one image")


def _check_in_subprocess(folder: Path) -> None:
    """Run the bundle once outside of this process, which then stays small and free of CUDA."""
    path = os.pathsep.join(filter(None, (str(PROJECT_ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "serving.check", str(folder)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the check ended with code {done.returncode}"]
        raise BundleError(lines[-1].removeprefix("error: "))
    logger.info("%s", done.stdout.strip())


def _prepare(settings: Settings) -> None:
    """End the command before it binds when there is nothing to serve; else pin the bundle for its workers."""
    configure_log()
    try:
        folder = find_bundle(settings.model)
        check_bundle(folder, settings)
        _check_in_subprocess(folder)
    except UserError as error:
        sys.exit(f"error: {error}")
    os.environ[PINNED_BUNDLE] = str(folder)
    os.environ[PARENT] = str(os.getpid())
    forward_hangup()
    explain_taken_port()


def _behind_gateway(settings: Settings, state: ServingState) -> type:
    """A class of services whose application lies behind the gateway."""

    class SegmentationService(Service):  # type: ignore[misc]
        def to_asgi(self, is_main: bool = True) -> Any:
            install_protocol(settings)
            app = super().to_asgi(is_main)
            drop_middleware(app, keep_spans=settings.otel)
            return guard(app, state)

    return SegmentationService


def build_service(settings: Settings) -> Any:
    """Make the service.

    Args:
        settings: Its settings; nothing is loaded before a worker starts.
    """
    state = ServingState(settings)

    @bentoml.asgi_app(make_pages(state), path="/")
    @bentoml.service(
        name="protoseg",
        service_class=_behind_gateway(settings, state),
        workers=settings.workers,
        logging={"access": {"enabled": False}},
        metrics={"enabled": False},
        tracing={} if settings.otel else {"excluded_urls": ".*"},
    )
    class Segmentation:
        """Semantic segmentation: an image in, a label map out."""

        @bentoml.on_deployment
        def check() -> None:
            _prepare(settings)

        def __init__(self) -> None:
            if in_worker():
                configure_log()
                tie_to_parent()
            state.load()

        @bentoml.on_startup
        async def take_signals(self) -> None:
            if in_worker():
                install_worker_signals(state)

        @bentoml.on_shutdown
        def stop(self) -> None:
            state.close()

        def __is_ready__(self) -> bool:
            return state.ready

        @bentoml.api(route=SEGMENT, input_spec=SegmentInput)
        async def segment_v1(self, image: Any, output: str = "mask") -> _Png:
            response: Any = await as_response(state, image, lambda: handlers.segment(state, image))
            return response  # type: ignore[no-any-return]

        @bentoml.api(route=SEGMENT_ALIAS, input_spec=SegmentInput)
        async def segment(self, image: Any, output: str = "mask") -> _Png:
            response: Any = await as_response(state, image, lambda: handlers.segment(state, image))
            return response  # type: ignore[no-any-return]

        @bentoml.api(route=SEGMENT_BATCH, input_spec=BatchInput)
        async def segment_batch(self, image: Any, output: str = "mask") -> dict[str, Any]:
            response: Any = await as_response(state, image, lambda: handlers.segment_batch(state, image))
            return response  # type: ignore[no-any-return]

    return Segmentation


def _default_service() -> Any:
    try:
        return build_service(load_settings())
    except UserError as error:
        sys.exit(f"error: {error}")


svc = _default_service()
