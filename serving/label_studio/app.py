"""The routes that Label Studio calls."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from protoseg.annotate.draft import Draft, Keep, skipped_ids
from protoseg.annotate.formats.label_studio import prediction
from protoseg.api.result import ModelInfo, Result
from protoseg.errors import UserError
from serving.label_studio.fetch import LabelStudio
from serving.label_studio.interface import Interface, read_interface
from serving.label_studio.trainer import Trainer

logger = logging.getLogger(__name__)
MAX_BODY = 32 * 2**20
_TRAINING_STATUS = {"started": 201, "running": 409, "off": 409, "failed": 500}
_TRAINING_TEXT = {
    "started": "training started", "running": "a training is running already",
    "off": "this backend has no training command; start it with --train COMMAND",
    "failed": "the training command cannot be started, see this backend's log",
}  # fmt: skip


class Segmenter(Protocol):
    """A bundle in this process, or the service."""

    def info(self) -> ModelInfo:
        """Name, version and classes of the model.

        Raises:
            UserError: If it cannot be reached.
        """
        ...

    def segment(self, image: bytes) -> Result:
        """Labels and, where the model has it, confidence of an image file.

        Raises:
            UserError: If the image cannot be used, or the model cannot be reached.
        """
        ...


class _BadRequestError(Exception):
    """A request that is none."""


@dataclass(frozen=True)
class Backend:
    """What the routes need."""

    model: Segmenter
    images: LabelStudio
    trainer: Trainer
    skip: str | None
    """Classes that are not proposed, as ``--skip``."""
    min_pixels: int
    min_confidence: float
    user: tuple[str, str] | None
    """Name and password of basic authentication."""

    def keep(self, info: ModelInfo) -> Keep:
        """What of a prediction is proposed."""
        return Keep(skipped_ids(self.skip, info.classes), self.min_pixels, self.min_confidence)

    def predict(self, task: dict[str, Any], interface: Interface) -> dict[str, Any]:
        """The prediction of a task.

        Raises:
            UserError: If its image cannot be had or used.
        """
        address = (task.get("data") or {}).get(interface.controls.image_key)
        if not isinstance(address, str) or not address:
            raise UserError(f"its data has no {interface.controls.image_key!r}, which the interface shows")
        result = self.model.segment(self.images.read(address))
        keep = self.keep(result.info)
        if keep.min_confidence and result.confidence is None:
            raise UserError("--min-confidence needs a bundle with confidence; export it with that output")
        labels = keep.apply(result.labels, result.confidence)
        draft = Draft(Path(address), address, labels, result.confidence)
        return prediction(draft, result.info.classes, version_of(result.info), interface.controls,
                          interface.labels)  # fmt: skip


def version_of(info: ModelInfo) -> str:
    """What Label Studio calls the model's predictions."""
    return f"{info.name} {info.version}"


def build_app(backend: Backend) -> Starlette:
    """The backend's application: ``/``, ``/health``, ``/setup``, ``/predict``, ``/webhook``, ``/train``."""

    async def health(_request: Request) -> Response:
        info = await run_in_threadpool(backend.model.info)
        return JSONResponse({"status": "UP", "model_class": "protoseg", "model_version": version_of(info)})

    async def setup(request: Request) -> Response:
        body = await _read(request)
        info = await run_in_threadpool(backend.model.info)
        found = read_interface(str(body.get("schema") or ""), info.classes)
        logger.info("project %s: labels %s", body.get("project"), ", ".join(found.labels.values()))
        return JSONResponse({"model_version": version_of(info)})

    async def predict(request: Request) -> Response:
        body = await _read(request)
        tasks = body.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
            raise _BadRequestError("expected tasks, a list of objects")
        info = await run_in_threadpool(backend.model.info)
        interface = read_interface(str(body.get("label_config") or ""), info.classes)
        results = []
        for task in tasks:
            try:
                results.append(await run_in_threadpool(backend.predict, task, interface))
            except UserError as error:
                logger.error("task %s: %s", task.get("id"), error)
                # one bad image must not cost the others their predictions; an answer without a result is
                # logged there and asked for again, where an empty one would be kept
                if len(tasks) == 1:
                    raise
                results.append({"error": str(error)})
        return JSONResponse({"results": results})

    async def train(request: Request) -> Response:
        body = await _read(request)
        # newer versions tell of a training as of other events
        if request.url.path == "/webhook" and body.get("action") != "START_TRAINING":
            return JSONResponse({"status": "ignored"})
        project = body.get("project")
        # PROJECT.TIME in older versions
        number = project.get("id") if isinstance(project, dict) else str(project or "").partition(".")[0]
        state = await run_in_threadpool(backend.trainer.start, str(number or ""))
        answer = {"status": state, "detail": _TRAINING_TEXT[state]}
        return JSONResponse(answer, _TRAINING_STATUS[state])

    routes = [
        _route("/", health, "GET", backend), _route("/health", health, "GET", backend),
        _route("/setup", setup, "POST", backend), _route("/predict", predict, "POST", backend),
        _route("/webhook", train, "POST", backend), _route("/train", train, "POST", backend),
    ]  # fmt: skip
    return Starlette(routes=routes)


def _route(path: str, handler: Callable[[Request], Any], method: str, backend: Backend) -> Route:
    """A route with the password asked for, and errors told as JSON."""

    async def guarded(request: Request) -> Response:
        if backend.user is not None and not _knows(request, backend.user):
            return _error(401, "wrong name or password", {"www-authenticate": "Basic"})
        try:
            answer: Response = await handler(request)
        except _BadRequestError as error:
            return _error(400, str(error))
        except UserError as error:
            logger.error("%s: %s", path, error)
            # Label Studio shows what lies at 5xx as the backend's error
            return _error(503 if path in ("/", "/health") else 500, str(error))
        return answer

    return Route(path, guarded, methods=[method])


def _error(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": text}, status, headers)


def _knows(request: Request, user: tuple[str, str]) -> bool:
    wanted = base64.b64encode(":".join(user).encode()).decode()
    given = request.headers.get("authorization", "")
    return hmac.compare_digest(given.encode(), f"Basic {wanted}".encode())


async def _read(request: Request) -> dict[str, Any]:
    """The JSON object of a request.

    Raises:
        _BadRequestError: If it is none.
    """
    # a page of another site can send other types without asking first
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise _BadRequestError("expected content-type application/json")
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY:
            raise _BadRequestError(f"the body is larger than {MAX_BODY >> 20} MiB")
    try:
        value = json.loads(bytes(data))
    except ValueError as error:
        raise _BadRequestError(f"the body is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _BadRequestError("expected a JSON object")
    return value
