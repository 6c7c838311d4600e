"""Checkpoint to the fp32 ONNX graph: settings, tracing, naming, checking."""

from __future__ import annotations

import ast
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch

from export.graph.edit import add_alias, check_graph, prune, set_axes, strip
from export.graph.module import (
    DEFAULT_OUTPUTS,
    EXPLAINING_OUTPUTS,
    HEAD_LOGITS,
    NOVELTY,
    STRIDE_SUFFIX,
    ExportModule,
)
from export.graph.prepare import prepare_network
from export.runners.contract import Layout
from protoseg.checkpoint import Checkpoint
from protoseg.errors import ExportError
from protoseg.manifest import BUNDLE_SCHEMA, Head, Precision

logger = logging.getLogger(__name__)
OPSETS = range(18, 24)
DEFAULT_OPSET = 20
SCOPES_KEY = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class ExportSettings:
    """What ``python -m export.onnx`` can be asked for."""

    precisions: tuple[Precision, ...] = ("fp32",)
    """Files to make; fp32 is always made."""
    head: Head = "linear"
    """Head behind labels and confidence."""
    layout: Layout = "uint8_nchw"
    """Element type and axes of the image."""
    static: tuple[int, int, int] | None = None
    """Fixed (batch, height, width), or None for dynamic axes."""
    outputs: tuple[str, ...] = DEFAULT_OUTPUTS
    """Graph outputs."""
    opset: int = DEFAULT_OPSET
    """ONNX operator set."""
    calibrate: Path | None = None
    """Folder of images for calibration; None takes the run's unlabelled images."""
    num_calibration: int = 64
    """Largest number of calibration images."""
    atlas: Path | None = None
    """Folder of the run's atlas, to go into the bundle; None leaves it out."""


def trace(module: ExportModule, settings: ExportSettings, channels: int, multiple: int) -> onnx.ModelProto:
    """The ONNX graph with every output the module has, unstripped.

    Raises:
        ExportError: If the network cannot be traced.
    """
    batch, height, width = settings.static or (2, 2 * multiple, 3 * multiple)
    shape = (batch, channels, height, width)
    if settings.layout == "uint8_nhwc":
        shape = (batch, height, width, channels)
    dtype = torch.float32 if settings.layout == "float32_nchw" else torch.uint8
    rows = 1 if settings.layout == "uint8_nhwc" else 2
    axes = None if settings.static else {"image": {0: "batch", rows: "height", rows + 1: "width"}}
    try:
        program = torch.onnx.export(
            module, (torch.zeros(shape, dtype=dtype),), dynamo=True, opset_version=settings.opset,
            input_names=["image"], output_names=list(module.output_names), dynamic_shapes=axes, verbose=False,
        )  # fmt: skip
    except Exception as error:  # torch.export and the translator raise many types
        cause = " ".join(str(error).split())[:300]
        hint = "" if settings.static else "; a fixed size may work: --static 1xHxW"
        raise ExportError(f"the network cannot be traced to ONNX: {cause}{hint}") from error
    assert program is not None
    model = program.model_proto
    name_nodes(model)
    return model


def name_nodes(model: onnx.ModelProto) -> None:
    """Name every node after the module that it came from: ``network.backbone.../Conv_12``.

    Lowering to other precisions chooses nodes by these names.
    """
    for number, node in enumerate(model.graph.node):
        scopes = next((p.value for p in node.metadata_props if p.key == SCOPES_KEY), "[]")
        modules = [s for s in ast.literal_eval(scopes)[:-1] if s and not s.startswith("_")]
        node.name = f"{modules[-1] if modules else 'head'}/{node.op_type}_{number}"


def build_graph(checkpoint: Checkpoint, settings: ExportSettings) -> onnx.ModelProto:
    """The fp32 graph of a checkpoint: traced, cut to the wanted outputs, named, stripped and checked.

    Raises:
        ExportError: If it cannot be traced or breaks the rules of a bundle.
    """
    info = checkpoint.info
    prepared = prepare_network(checkpoint.segmenter, settings.static)
    module = ExportModule(prepared, settings.head, settings.layout).eval()
    model = trace(module, settings, info.input.channels, info.input.stride_multiple)
    add_alias(model, f"{settings.head}_logits_stride", "logits_stride")
    # no output needs the prototype head when the linear one labels, but both are to be proven in this file
    both = "agreement" in settings.outputs
    model = prune(model, settings.outputs, [head + STRIDE_SUFFIX for head in HEAD_LOGITS] if both else [])
    batch, height, width = settings.static or ("batch", "height", "width")
    for value in model.graph.output:
        rank = len(value.type.tensor_type.shape.dim)
        at_stride = value.name in ("logits_stride", "prototype", "embedding", "similarity")
        full: list[Any] = [height, width] if not at_stride else ["rows", "columns"]
        if settings.static and at_stride:
            full = [None, None]
        set_axes(value, [batch, *([None] if rank == 4 else []), *full])
    metadata = {
        "protoseg.schema": str(BUNDLE_SCHEMA),
        "protoseg.checkpoint_sha256": info.weights_sha256,
        "protoseg.classes": json.dumps([item.name for item in info.classes]),
        "protoseg.head": settings.head,
        "protoseg.input": info.input.model_dump_json(),
        "protoseg.layout": settings.layout,
    }
    strip(model, metadata)
    check_graph(model, settings.opset)
    return model


def check_settings(checkpoint: Checkpoint, settings: ExportSettings) -> ExportSettings:
    """Settings that fit the checkpoint.

    Raises:
        ExportError: If head or outputs need prototypes or novelty that it does not have, or the opset is
            unknown.
    """
    if settings.opset not in OPSETS:
        raise ExportError(f"--opset {settings.opset} is not supported; use {OPSETS[0]} to {OPSETS[-1]}")
    outputs = settings.outputs
    if NOVELTY in outputs and checkpoint.segmenter.novelty is None:
        raise ExportError(
            f"--outputs {NOVELTY} needs what `protoseg novelty` fits, the checkpoint has none; run: protoseg "
            f"novelty {checkpoint.path}"
        )
    if not bool(checkpoint.segmenter.bank.active.any()):
        if settings.head != "linear":
            raise ExportError(
                f"--head {settings.head} needs prototypes, the checkpoint has none "
                f"(method {checkpoint.info.method}); use --head linear"
            )
        outputs = tuple(name for name in outputs if name not in ("agreement", *EXPLAINING_OUTPUTS))
    static = settings.static
    if static is None and checkpoint.info.model.architecture == "dpt":
        # a vision transformer's position embedding is resampled for one size
        static = (1, *checkpoint.info.input.crop)
        logger.info("vision transformer: fixed size %dx%dx%d (change it with --static)", *static)
    return replace(settings, outputs=outputs, static=static)
