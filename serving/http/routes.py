"""The one table of paths: nothing else passes the gateway; pages and ``/docs.json`` are made from it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

SEGMENT, SEGMENT_ALIAS, SEGMENT_BATCH = "/v1/segment", "/segment", "/v1/segment/batch"
READY = frozenset({"/readyz", "/v2/health/ready", "/ping"})
PROTOCOL = "/v2"
JSON, PNG, JPEG = "application/json", "image/png", "image/jpeg"
TEXT, BINARY = "text/plain", "application/octet-stream"

_MAPS = (JSON, PNG, JPEG, "application/geo+json")
_NAME = r"[A-Za-z0-9._-]{1,128}"
_MODELS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
_PARAMETERS = {"file": r"app\.(?:js|css)", "index": r"\d{1,4}", "name": _NAME, "version": _NAME}


@dataclass(frozen=True)
class Route:
    """One path or path pattern."""

    path: str
    """Path; a name in braces is a parameter."""
    page: str = ""
    """Method of ``pages.Pages`` that answers; empty: BentoML does."""
    summary: str = ""
    """What it is for, in ``/docs.json``; empty: it is not described."""
    answers: tuple[str, ...] = (JSON,)
    """Content types of the answer."""
    body: Literal["image", "images", "tensor", "instances", "any"] | None = None
    """What is sent (``any``: an image or instances); such a request takes a place in the queue."""
    post: bool = False
    """Takes POST although nothing that is sent matters."""
    admin: bool = False
    """Needs an admin key, and POST."""
    probe: bool = False
    """Answered without a key and left out of the log."""
    public: bool = False
    """Answered without a key."""

    @property
    def takes_images(self) -> bool:
        """Whether an image is sent, with the options of ``options.Options``."""
        return self.body in ("image", "images", "any")

    @property
    def methods(self) -> tuple[str, ...]:
        """Accepted methods."""
        return ("POST",) if self.body or self.admin or self.post else ("GET", "HEAD")

    @property
    def label(self) -> str:
        """The path in logs and metrics."""
        return self.path.removesuffix("/versions/{version}").replace("/versions/{version}/", "/")


ROUTES = (
    Route(SEGMENT, summary="Segment an image", answers=_MAPS, body="image"),
    Route(SEGMENT_ALIAS, summary="Segment an image", answers=_MAPS, body="image"),
    Route(SEGMENT_BATCH, summary="Segment up to 16 images", body="images"),
    Route("/v1/models/{name}", "v1_model", "Model readiness (KServe v1)"),
    Route(
        "/v1/models/{name}:predict",
        "predict",
        "Segment images in JSON (TensorFlow Serving, KServe v1)",
        body="instances",
    ),
    Route("/predict", "predict", "Segment images in JSON (Vertex AI)", body="instances"),
    Route(
        "/invocations", "invocations", "Segment an image, or images in JSON (SageMaker)", _MAPS, body="any"
    ),
    Route("/ping", "ping", "Requests are answered (SageMaker)", answers=(TEXT,), probe=True),
    Route("/v1/model", "model", "The served model, its classes and settings"),
    Route("/v1/samples/{index}", "sample", "A sample image", (PNG,)),
    Route("/v1/prototypes", "prototypes", "The prototypes and the training patches that they stand for"),
    Route(
        "/v1/prototypes/{index}", "prototype", "Thumbnails of a prototype's patches, side by side", (JPEG,)
    ),
    Route("/v1/reload", "reload", "Check the bundle again and swap it in (admin key)", admin=True),
    Route("/", "page", public=True),
    Route("/demo/{file}", "page", public=True),
    Route("/livez", summary="The process answers", answers=(TEXT,), probe=True),
    Route("/readyz", summary="Requests are answered", answers=(TEXT,), probe=True),
    Route("/healthz", summary="The process answers", answers=(TEXT,), probe=True),
    Route("/metrics", "metrics", "Prometheus metrics", (TEXT,)),
    Route("/docs", "docs_page", public=True),
    Route("/docs.json", "docs"),
    Route("/openapi.json", "docs"),
    Route("/schema.json"),
    Route(PROTOCOL, "v2_server", "Server metadata (Open Inference Protocol)"),
    Route("/v2/health/live", "v2_health", "Live", probe=True),
    Route("/v2/health/ready", "v2_health", "Ready", probe=True),
    Route("/v2/repository/index", "v2_index", "The models of this server", post=True),
    Route("/v2/models/stats", "v2_stats", "Statistics of the model"),
    *(
        route
        for base in _MODELS
        for route in (
            Route(base, "v2_model", "Model metadata"),
            Route(f"{base}/ready", "v2_ready", "Model readiness"),
            Route(f"{base}/config", "v2_config", "Model configuration, as Triton gives it"),
            Route(f"{base}/stats", "v2_stats", "Statistics of the model, as Triton gives them"),
            Route(f"{base}/infer", "v2_infer", "Infer on a tensor", (JSON, BINARY), body="tensor"),
        )
    ),
)


def _pattern(path: str) -> re.Pattern[str]:
    fixed = re.split(r"\{(\w+)\}", path)
    return re.compile("".join(_PARAMETERS[t] if i % 2 else re.escape(t) for i, t in enumerate(fixed)))


_FIXED = {route.path: route for route in ROUTES if "{" not in route.path}
_PATTERNS = [(_pattern(route.path), route) for route in ROUTES if "{" in route.path]


def speaks_protocol(path: str) -> bool:
    """Whether the Open Inference Protocol says how the answers of a path look."""
    return path == PROTOCOL or path.startswith(f"{PROTOCOL}/")


def find_route(path: str) -> Route | None:
    """The route of a path, or None: that is 404 before any other code sees it."""
    if path in _FIXED:
        return _FIXED[path]
    return next((route for pattern, route in _PATTERNS if pattern.fullmatch(path)), None)
