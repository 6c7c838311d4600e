"""What the service computes for a request, from body bytes to answer bytes. Runs in worker threads."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.errors import RequestState, ServingError
from serving.http.options import MAX_BATCH_FILES, Options, Part, parse_options, split_body
from serving.model.model import Engine, Prediction
from serving.pixels.decode import Pixels, decode, sniff
from serving.pixels.records import (
    class_pixels,
    class_records,
    encode_overlay,
    encode_png,
    geojson,
    hf_segments,
    keep_classes,
    polygons_by_class,
    rle_by_class,
    scores_to_bytes,
)
from serving.worker.metrics import metrics
from serving.worker.state import ServingState, check_alive

logger = logging.getLogger(__name__)

_NEED_CONFIDENCE = frozenset({"json", "confidence", "hf", "rle", "polygons"})
_NEED_AGREEMENT = frozenset({"json", "agreement", "rle", "polygons"})


@dataclass(frozen=True)
class Incoming:
    """A request whose body is complete."""

    body: bytes
    """Body."""
    content_type: str
    """Content-Type header, may be empty."""
    accept: str
    """Accept header, may be empty."""
    query: list[tuple[str, str]]
    """Query parameters."""
    state: RequestState
    """Shared with the gateway."""


@dataclass
class Answer:
    """A successful response."""

    body: bytes
    """Body."""
    media_type: str
    """Content-Type."""
    headers: dict[str, str] = field(default_factory=dict)
    """More headers."""


@contextmanager
def _stage(request: RequestState, name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        request.stages[name] = request.stages.get(name, 0.0) + time.perf_counter() - start


def to_json(value: Any) -> bytes:
    """Compact JSON."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def model_record(engine: Engine) -> dict[str, str]:
    """Name, version and hash of the served model."""
    artifact = engine.bundle.artifact
    return {"name": engine.manifest.name, "version": engine.manifest.version, "sha256": artifact.sha256}


def _headers(engine: Engine, request: RequestState, result: Prediction | None) -> dict[str, str]:
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in request.stages.items())
    headers = {
        "x-model-name": engine.manifest.name.encode("ascii", "replace").decode(),
        "x-model-version": engine.manifest.version.encode("ascii", "replace").decode(),
        "server-timing": timing,
    }
    if result is not None and result.tiles > 1:
        headers["x-tiles"] = str(result.tiles)
    return headers


def _predict(
    state: ServingState, engine: Engine, image: Pixels, options: Options, request: RequestState
) -> Prediction:
    sampled = False
    if options.output not in _NEED_CONFIDENCE and state.settings.confidence_every:
        sampled = next(state.mask_requests) % state.settings.confidence_every == 0
    with _stage(request, "infer"):
        result = engine.predict(
            image,
            confidence=options.output in _NEED_CONFIDENCE or sampled,
            agreement=options.output in _NEED_AGREEMENT or state.keeper is not None or sampled,
            tile=options.tile,
            at_model_size=options.at_model_size,
            deadline=request.deadline,
            alive=lambda: check_alive(request),
        )
    agreement = None if result.agreement is None else float(result.agreement.mean())
    pixels = class_pixels(result.labels, len(engine.manifest.classes))
    metrics().observe_prediction(engine.manifest, pixels, result.confidence, agreement)
    if agreement is not None:
        request.facts["agreement"] = round(agreement, 4)
    return result


def _keep_hard(state: ServingState, engine: Engine, data: bytes, result: Prediction, request_id: str) -> None:
    keeper = state.keeper
    if keeper is None or result.agreement is None or not float(result.agreement.mean()) < keeper.below:
        return
    record = {
        "request_id": request_id,
        "time": time.time(),
        "model": model_record(engine),
        "agreement": round(float(result.agreement.mean()), 4),
        "classes": class_records(result.labels, None, result.agreement, engine.manifest, None),
    }
    mask = encode_png(result.labels, engine.palette)
    kept = keeper.keep(data, sniff(data) or "bin", mask, record)
    metrics().hard_kept.labels(kept).inc()


def _missing(what: str) -> ServingError:
    return ServingError(422, "bad_output", f"this bundle's graph has no {what}; export it with that output")


def _encode(engine: Engine, image: Pixels, result: Prediction, options: Options) -> tuple[bytes, str]:
    """Body and content type of every output but those made of records."""
    ignore = engine.manifest.ignore_index
    if options.output == "mask":
        labels = keep_classes(result.labels, options.classes, ignore)
        return encode_png(labels, engine.palette), "image/png"
    if options.output == "overlay":
        if options.at_model_size and image.shape[:2] != result.labels.shape:
            raise ServingError(422, "bad_parameter", "overlay is drawn at size=original only")
        jpeg = encode_overlay(image, result.labels, engine.palette, options.alpha, options.classes)
        return jpeg, "image/jpeg"
    scores = result.confidence if options.output == "confidence" else result.agreement
    if scores is None:
        raise _missing(options.output)
    return encode_png(scores_to_bytes(scores)), "image/png"


def _records(engine: Engine, result: Prediction, options: Options, request: RequestState) -> tuple[Any, str]:
    """JSON value and content type of the outputs made of records."""
    records = class_records(
        result.labels, result.confidence, result.agreement, engine.manifest, options.classes
    )
    if options.output == "hf":
        return hf_segments(result.labels, records), "application/json"
    height, width = result.labels.shape
    if options.output == "rle":
        runs = rle_by_class(result.labels)
        for record in records:
            record["rle"] = {"size": [height, width], "counts": runs[record["id"]]}
    elif options.output == "polygons":
        polygons = polygons_by_class(result.labels, options.simplify)
        if options.geojson:
            return geojson(polygons, records), "application/geo+json"
        for record in records:
            record["polygons"] = polygons.get(record["id"], [])
    value = {
        "width": width,
        "height": height,
        "model": model_record(engine),
        "classes": records,
        "mean_confidence": None if result.confidence is None else round(float(result.confidence.mean()), 4),
        "mean_agreement": None if result.agreement is None else round(float(result.agreement.mean()), 4),
        "tiles": result.tiles,
        "upsampling": engine.upsampling,
        "timing_ms": {name: round(1000 * seconds, 2) for name, seconds in request.stages.items()},
        "request_id": request.request_id,
    }
    return value, "application/json"


def _check_output(engine: Engine, options: Options) -> None:
    if options.output == "confidence" and not engine.has_confidence:
        raise _missing("confidence")
    if options.output == "agreement" and not engine.has_agreement:
        raise _missing("agreement")


def segment(state: ServingState, incoming: Incoming) -> Answer:
    """Answer ``POST /v1/segment``.

    Raises:
        ServingError: As the table in ``docs/serving.md`` says.
    """
    request = incoming.state
    with state.engine as engine:
        files, fields = split_body(incoming.body, incoming.content_type)
        options = parse_options([*incoming.query, *fields], incoming.accept, engine.manifest)
        _check_output(engine, options)
        data = files[0].data
        with _stage(request, "decode"):
            image = decode(data, state.limits, engine.manifest.input.channels)
        request.facts |= {"width": image.shape[1], "height": image.shape[0], "output": options.output}
        check_alive(request)
        result = _predict(state, engine, image, options, request)
        check_alive(request)
        with _stage(request, "encode"):
            if options.output in ("json", "rle", "polygons", "hf"):
                value, media_type = _records(engine, result, options, request)
                body = to_json(value)
            else:
                body, media_type = _encode(engine, image, result, options)
        _keep_hard(state, engine, data, result, request.request_id)
        request.facts["model"] = engine.manifest.version
        return Answer(body, media_type, _headers(engine, request, result))


def _batch_item(
    state: ServingState, engine: Engine, part: Part, options: Options, request: RequestState
) -> dict[str, Any]:
    item: dict[str, Any] = {"name": part.filename or part.name}
    try:
        with _stage(request, "decode"):
            image = decode(part.data, state.limits, engine.manifest.input.channels)
        result = _predict(state, engine, image, options, request)
        with _stage(request, "encode"):
            if options.output in ("json", "rle", "polygons", "hf"):
                value, _ = _records(engine, result, options, request)
                if isinstance(value, dict):
                    for key in ("model", "timing_ms", "request_id"):
                        value.pop(key, None)
                item |= {"status": 200, "result": value}
            else:
                body, media_type = _encode(engine, image, result, options)
                height, width = result.labels.shape
                item |= {"status": 200, "width": width, "height": height, "content_type": media_type}
                item["data"] = base64.b64encode(body).decode("ascii")
        _keep_hard(state, engine, part.data, result, request.request_id)
    except ServingError as error:
        if error.status == 504:
            raise
        item |= {"status": error.status, "error": {"code": error.code, "message": error.message}}
    return item


def segment_batch(state: ServingState, incoming: Incoming) -> Answer:
    """Answer ``POST /v1/segment/batch``: JSON with one item for each file, in order.

    Raises:
        ServingError: When the request as a whole is bad; a bad image only spoils its own item.
    """
    request = incoming.state
    with state.engine as engine:
        if incoming.content_type.split(";")[0].strip().lower() != "multipart/form-data":
            raise ServingError(
                415, "unsupported_media_type",
                "a batch is multipart/form-data with up to 16 file fields image",
            )  # fmt: skip
        files, fields = split_body(incoming.body, incoming.content_type, MAX_BATCH_FILES)
        options = parse_options([*incoming.query, *fields], "", engine.manifest)
        _check_output(engine, options)
        items = []
        for part in files:
            check_alive(request)
            items.append(_batch_item(state, engine, part, options, request))
        request.facts |= {"files": len(files), "output": options.output, "model": engine.manifest.version}
        body = to_json(
            {
                "model": model_record(engine),
                "output": options.output,
                "items": items,
                "timing_ms": {name: round(1000 * s, 2) for name, s in request.stages.items()},
                "request_id": request.request_id,
            }
        )
        return Answer(body, "application/json", _headers(engine, request, None))


Handler = Callable[[ServingState, Incoming], Answer]
