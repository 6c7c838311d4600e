"""HTTP service for bundles: ``bentoml serve serving:svc``, and ``Client``. No torch, no model to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.http_client import Client as Client


def __getattr__(name: str) -> Any:
    """Make ``svc`` on first use, so that the other modules import without BentoML."""
    if name == "svc":
        from serving.worker.parent import tie_worker

        # what follows takes seconds, in which the parent may die
        tie_worker()
        from serving import service

        return service.svc
    if name == "Client":
        from serving.http_client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
