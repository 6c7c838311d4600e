"""What the service computes for a request, from body bytes to answer bytes. Runs in worker threads.

On the wire (JSON, log, ``output=``) the linear head's probability of the label is called ``agreement``.
"""

from __future__ import annotations

import base64
import time
from typing import Any

from protoseg.data.regions import geojson
from serving.errors import LACKING, RequestState, ServingError
from serving.http.body import MAX_BATCH_FILES, Part, is_form, read_body
from serving.http.options import Options, parse_options
from serving.http.respond import Answer, Incoming, model_record, stage, to_json
from serving.model.model import Model
from serving.model.prediction import Prediction
from serving.pixels.decode import Pixels, decode, sniff
from serving.pixels.maps import class_pixels, keep_classes
from serving.pixels.overlay import encode_overlay
from serving.pixels.png import encode_png, scores_to_bytes
from serving.pixels.reasons import explain
from serving.pixels.records import class_records, hf_segments
from serving.pixels.regions import polygons_by_class, rle_by_class
from serving.worker.metrics import metrics
from serving.worker.state import ServingState, check_alive

NOT_EXPLAINED = f"this bundle has {LACKING['explain']}"


def _timing(request: RequestState) -> dict[str, float]:
    return {name: round(1000 * seconds, 2) for name, seconds in request.stages.items()}


def _headers(model: Model, request: RequestState, result: Prediction | None) -> dict[str, str]:
    timing = ", ".join(f"{name};dur={1000 * seconds:.1f}" for name, seconds in request.stages.items())
    headers = {
        "x-model-name": model.manifest.name.encode("ascii", "replace").decode(),
        "x-model-version": model.manifest.version.encode("ascii", "replace").decode(),
        "server-timing": timing,
    }
    if result is not None and result.tiles > 1:
        headers["x-tiles"] = str(result.tiles)
    return headers


def _predict(
    state: ServingState, model: Model, image: Pixels, options: Options, request: RequestState
) -> Prediction:
    sampled = False
    if not options.needs_confidence and state.settings.confidence_every:
        sampled = next(state.mask_requests) % state.settings.confidence_every == 0
    with stage(request, "infer"):
        result = model.predict(
            image,
            confidence=options.needs_confidence or sampled,
            label_probability=options.needs_label_probability or state.keeper is not None or sampled,
            nearest=options.output == "explain",
            novelty=options.needs_novelty or sampled,
            tile=options.tile in ("1", "true"),
            at_model_size=options.size == "model",
            deadline=request.deadline,
            alive=lambda: check_alive(request),
        )
    mean = result.mean_label_probability
    pixels = class_pixels(result.labels, len(model.manifest.classes))
    metrics().observe_prediction(model.manifest, pixels, result.confidence, mean)
    metrics().observe_novelty(result.novelty)
    if mean is not None:
        request.facts["agreement"] = round(mean, 4)
    return result


def _keep_hard(state: ServingState, model: Model, data: bytes, result: Prediction, request_id: str) -> None:
    keeper, mean = state.keeper, result.mean_label_probability
    if keeper is None or mean is None or not mean < keeper.below:
        return
    record = {
        "request_id": request_id,
        "time": time.time(),
        "model": model_record(model),
        "agreement": round(mean, 4),
        "classes": class_records(result.labels, None, result.label_probability, model.manifest, None),
    }
    mask = encode_png(result.labels, model.palette)
    kept = keeper.keep(data, sniff(data) or "bin", mask, record)
    metrics().hard_kept.labels(kept).inc()


def _missing(what: str) -> ServingError:
    return ServingError(422, "bad_output", f"this bundle's graph has no {what}; export it with that output")


def _encode(model: Model, image: Pixels, result: Prediction, options: Options) -> tuple[bytes, str]:
    """Body and content type of every output but those made of records."""
    ignore = model.manifest.ignore_index
    if options.output == "mask":
        labels = keep_classes(result.labels, options.classes, ignore)
        return encode_png(labels, model.palette), "image/png"
    if options.output == "overlay":
        if options.size == "model" and image.shape[:2] != result.labels.shape:
            raise ServingError(422, "bad_parameter", "overlay is drawn at size=original only")
        jpeg = encode_overlay(image, result.labels, model.palette, options.alpha, options.classes)
        return jpeg, "image/jpeg"
    maps = {"confidence": result.confidence, "novelty": result.novelty}
    scores = maps.get(options.output, result.label_probability)
    if scores is None:
        raise _missing(options.output)
    return encode_png(scores_to_bytes(scores)), "image/png"


def _records(model: Model, result: Prediction, options: Options, request: RequestState) -> tuple[Any, str]:
    """JSON value and content type of the outputs made of records."""
    if options.output == "explain":
        assert model.atlas is not None
        assert result.nearest is not None
        grid = options.grid in ("1", "true")
        value = explain(
            result.labels, result.nearest, model.atlas, options.points, options.classes, grid=grid
        )
        return {**_frame(model, result, request), **value}, "application/json"
    records = class_records(
        result.labels, result.confidence, result.label_probability, model.manifest, options.classes
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
        if options.format == "geojson":
            return geojson(polygons, records), "application/geo+json"
        for record in records:
            record["polygons"] = polygons.get(record["id"], [])
    mean = result.mean_label_probability
    value = {
        **_frame(model, result, request),
        "classes": records,
        "mean_confidence": None if result.confidence is None else round(float(result.confidence.mean()), 4),
        "mean_agreement": None if mean is None else round(mean, 4),
        **({} if result.novel_share is None else {"novel_share": round(result.novel_share, 4)}),
        "tiles": result.tiles,
        "upsampling": model.upsampling,
    }
    return value, "application/json"


def _frame(model: Model, result: Prediction, request: RequestState) -> dict[str, Any]:
    """What every answer made of records begins with."""
    height, width = result.labels.shape
    return {
        "width": width,
        "height": height,
        "model": model_record(model),
        "timing_ms": _timing(request),
        "request_id": request.request_id,
    }


def _read(incoming: Incoming, model: Model, accept: str, max_files: int) -> tuple[list[Part], Options]:
    """Files and options of a request, once it is known that the model has what they ask for."""
    files, fields = read_body(incoming.body, incoming.content_type, max_files)
    names = [item.name for item in model.manifest.classes]
    options = parse_options([*incoming.query, *fields], accept, names)
    if options.output == "confidence" and not model.has_confidence:
        raise _missing("confidence")
    if options.output == "agreement" and not model.has_label_probability:
        raise _missing("agreement")
    if options.output == "explain" and model.atlas is None:
        raise ServingError(422, "bad_output", NOT_EXPLAINED)
    if options.output == "novelty" and not model.has_novelty:
        raise ServingError(422, "bad_output", f"this bundle has {LACKING['novelty']}")
    return files, options


def decode_image(state: ServingState, model: Model, data: bytes, request: RequestState) -> Pixels:
    """An image's file as the pixels that the bundle wants, (H, W, C_in) uint8.

    Raises:
        ServingError: 413, 415 or 422.
    """
    with stage(request, "decode"):
        rule = model.manifest.input
        return decode(data, state.limits, rule.channels, rule.value_range, rule.exif)


def compute(
    state: ServingState, model: Model, data: bytes, image: Pixels, options: Options, request: RequestState
) -> tuple[Any, str, Prediction]:
    """The result for one image: JSON value or encoded image, its content type, and the maps behind it.

    Raises:
        ServingError: 504 after the deadline, 422 for an output that the bundle lacks.
    """
    check_alive(request)
    result = _predict(state, model, image, options, request)
    check_alive(request)
    with stage(request, "encode"):
        if options.is_json:
            value, media_type = _records(model, result, options, request)
        else:
            value, media_type = _encode(model, image, result, options)
    _keep_hard(state, model, data, result, request.request_id)
    return value, media_type, result


def segment(state: ServingState, incoming: Incoming) -> Answer:
    """Answer ``POST /v1/segment``.

    Raises:
        ServingError: As the table in ``docs/serving.md`` says.
    """
    request = incoming.state
    with state.model as model:
        files, options = _read(incoming, model, incoming.accept, 1)
        image = decode_image(state, model, files[0].data, request)
        request.facts |= {"width": image.shape[1], "height": image.shape[0], "output": options.output}
        value, media_type, result = compute(state, model, files[0].data, image, options, request)
        request.facts["model"] = model.manifest.version
        body = to_json(value) if options.is_json else value
        return Answer(body, media_type, _headers(model, request, result))


def _batch_item(
    state: ServingState, model: Model, part: Part, options: Options, request: RequestState
) -> dict[str, Any]:
    item: dict[str, Any] = {"name": part.filename or part.name}
    try:
        image = decode_image(state, model, part.data, request)
        value, media_type, result = compute(state, model, part.data, image, options, request)
    except ServingError as error:
        if error.status == 504:
            raise
        return item | {"status": error.status, "error": {"code": error.code, "message": error.message}}
    if options.is_json:
        if isinstance(value, dict):
            for key in ("model", "timing_ms", "request_id"):
                value.pop(key, None)
        return item | {"status": 200, "result": value}
    height, width = result.labels.shape
    data = base64.b64encode(value).decode("ascii")
    return item | {"status": 200, "width": width, "height": height, "content_type": media_type, "data": data}


def segment_batch(state: ServingState, incoming: Incoming) -> Answer:
    """Answer ``POST /v1/segment/batch``: JSON with one item for each file, in order.

    Raises:
        ServingError: When the request as a whole is bad; a bad image only spoils its own item.
    """
    request = incoming.state
    with state.model as model:
        if not is_form(incoming.content_type):
            raise ServingError(
                415, "unsupported_media_type",
                "a batch is multipart/form-data with up to 16 file fields image",
            )  # fmt: skip
        files, options = _read(incoming, model, "", MAX_BATCH_FILES)
        items = [_batch_item(state, model, part, options, request) for part in files]
        request.facts |= {"files": len(files), "output": options.output, "model": model.manifest.version}
        value = {
            "model": model_record(model),
            "output": options.output,
            "items": items,
            "timing_ms": _timing(request),
            "request_id": request.request_id,
        }
        return Answer(to_json(value), "application/json", _headers(model, request, None))
