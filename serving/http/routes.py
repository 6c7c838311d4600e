"""Paths that exist. Everything else is 404 before any other code sees it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_GET = ("GET", "HEAD")


@dataclass(frozen=True)
class Route:
    """One path or path pattern."""

    path: str
    """As it appears in logs and metrics."""
    methods: tuple[str, ...] = _GET
    """Accepted methods."""
    infers: bool = False
    """Takes a body and a place in the queue."""
    admin: bool = False
    """Needs an admin key."""


# answered without a key
PROBES = frozenset({"/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
PUBLIC = frozenset({"/", "/demo/{file}"})

_ROUTES = (
    Route("/v1/segment", ("POST",), infers=True),
    Route("/segment", ("POST",), infers=True),
    Route("/v1/segment/batch", ("POST",), infers=True),
    Route("/v1/reload", ("POST",), admin=True),
    Route("/v1/model"),
    Route("/"),
    Route("/livez"),
    Route("/readyz"),
    Route("/healthz"),
    Route("/metrics"),
    Route("/docs.json"),
    Route("/schema.json"),
    Route("/v2"),
    Route("/v2/health/live"),
    Route("/v2/health/ready"),
)
_FIXED = {route.path: route for route in _ROUTES}
_MODEL = r"/v2/models/[A-Za-z0-9._-]{1,128}(/versions/[A-Za-z0-9._-]{1,128})?"
_PATTERNS = (
    (re.compile(r"/demo/(app\.js|app\.css)"), Route("/demo/{file}")),
    (re.compile(r"/v1/samples/\d{1,4}"), Route("/v1/samples/{index}")),
    (re.compile(_MODEL), Route("/v2/models/{name}")),
    (re.compile(rf"{_MODEL}/ready"), Route("/v2/models/{name}/ready")),
    (re.compile(rf"{_MODEL}/infer"), Route("/v2/models/{name}/infer", ("POST",), infers=True)),
)


def find_route(path: str) -> Route | None:
    """The route of a path, or None."""
    route = _FIXED.get(path)
    if route is not None:
        return route
    for pattern, candidate in _PATTERNS:
        if pattern.fullmatch(path):
            return candidate
    return None
