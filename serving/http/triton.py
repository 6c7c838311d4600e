"""What Triton adds to the Open Inference Protocol: index, configuration and statistics of models."""

from __future__ import annotations

from collections import Counter
from typing import Any

from serving.http.inference_protocol import model_metadata
from serving.http.routes import ROUTES
from serving.model.model import Model
from serving.worker.metrics import Totals


def repository_index(model: Model) -> list[dict[str, str]]:
    """Reply of ``POST /v2/repository/index``."""
    manifest = model.manifest
    return [{"name": manifest.name, "version": manifest.version, "state": "READY", "reason": ""}]


def model_config(model: Model) -> dict[str, Any]:
    """Reply of ``GET /v2/models/NAME/config``: a Triton model configuration.

    ``max_batch_size`` is 0, by which Triton says that the batch is an axis like the others.
    """
    metadata = model_metadata(model)
    names = {"inputs": "input", "outputs": "output"}
    tensors = {
        new: [
            {"name": item["name"], "data_type": f"TYPE_{item['datatype']}", "dims": item["shape"]}
            for item in metadata[old]
        ]
        for old, new in names.items()
    }
    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "backend": "protoseg",
        "max_batch_size": 0,
        **tensors,
    }


def model_statistics(model: Model, total: Totals) -> dict[str, Any]:
    """Reply of ``GET /v2/models/NAME/stats``: what all workers did since the start, by every path.

    ``fail`` has no duration: nothing measures how long refused requests took.
    """
    paths = {route.label for route in ROUTES if route.body}
    statuses = Counter[str]()
    for (path, status), count in total.requests.items():
        if path in paths:
            statuses["ok" if status == "200" else "failed"] += count

    def duration(stage: str) -> dict[str, int]:
        count, seconds = total.stages.get(stage, (0, 0.0))
        return {"count": count, "ns": round(seconds * 1e9)}

    stages = {
        "queue": duration("queue"),
        "compute_input": duration("decode"),
        "compute_infer": duration("infer"),
        "compute_output": duration("encode"),
    }
    nothing = {"count": 0, "ns": 0}
    record = {
        "name": model.manifest.name,
        "version": model.manifest.version,
        "last_inference": round(total.last_image * 1000),
        "inference_count": total.images,
        "execution_count": stages["compute_infer"]["count"],
        "inference_stats": {
            "success": {"count": statuses["ok"], "ns": sum(item["ns"] for item in stages.values())},
            "fail": {"count": statuses["failed"], "ns": 0},
            **stages,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }
    return {"model_stats": [record]}
