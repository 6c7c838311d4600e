"""Settings of the service: defaults < YAML (``PROTOSEG_CONFIG``) < ``PROTOSEG_*`` environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from protoseg.cores import usable_cores
from protoseg.errors import UserError
from protoseg.records import Section, validation_problems

# where this package lies: in a Bento, protoseg may be that of an installed checkout
PROJECT_ROOT = Path(__file__).resolve().parents[1]
PREFIX = "PROTOSEG_"
FORMATS = ("jpeg", "png", "webp", "bmp", "tiff", "gif")
# of the trainer, the export and the client; Kubernetes adds the last kind for a Service called protoseg
_FOREIGN = re.compile(
    r"(CONFIG|DATA|CACHE|API_KEY|(.*_)?SERVICE_(HOST|PORT.*)|(.*_)?PORT(_\d+_(TCP|UDP).*)?)$"
)
_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SECRET = ("api_keys", "admin_keys")
# as browsers write it: lower case, no path, the scheme's own port left out
_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_OWN_PORT = {"http": ":80", "https": ":443"}


class SettingsError(UserError):
    """Settings that cannot be used; the text is one line."""


class Settings(Section):
    """Settings of the service; each key is also ``PROTOSEG_KEY`` in the environment."""

    model: str | None = None
    """Bundle folder; null takes the newest ``runs/*/bundle``."""
    backend: Literal["auto", "onnx", "tensorrt", "openvino"] = "auto"
    """``auto`` takes a TensorRT engine whose sidecar fits this machine, else ONNX Runtime. ``openvino`` runs,
    on a CPU, a file that was proven in it; see ``openvino_precision``."""
    openvino_precision: Literal["bf16", "fp32"] = "bf16"
    """What OpenVINO computes in; ``bf16`` needs a processor that has it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where ONNX Runtime runs; ``auto`` takes CUDA where it really works."""
    precision: Literal["fp32", "fp16", "int8", "int8-cpu"] | None = None
    """Which of the bundle's files is served; null takes the fp32 graph, or any proven engine."""
    workers: int = Field(1, ge=1, le=64)
    """Worker processes."""
    threads: int | None = Field(None, ge=1, le=256)
    """Requests that a worker computes at a time; null: cores / workers / intra_threads."""
    intra_threads: int = Field(1, ge=1, le=256)
    """ONNX Runtime threads for one inference (1 is best for throughput)."""
    batch_max: int | None = Field(None, ge=1, le=64)
    """Images of one size in an inference; null: 1 on CPU, 8 on a GPU."""
    batch_delay_ms: float = Field(0.0, ge=0, le=1000)
    """Milliseconds that a batch that is not full waits for more."""
    fused: bool = True
    """Upsample and take the argmax outside the graph when it offers ``logits_stride`` and the
    bundle's samples come out identical (about a fifth less CPU time)."""
    queue: int = Field(16, ge=0, le=100_000)
    """Requests that may wait in a worker; more are refused with 503."""
    timeout: float = Field(30.0, gt=0, le=3600)
    """Seconds from the request's first byte to its answer; then 504."""
    body_timeout: float = Field(10.0, gt=0, le=3600)
    """Seconds for the whole body; then 408."""
    header_timeout: float = Field(10.0, gt=0, le=3600)
    """Seconds for the request head; then the connection is closed."""
    write_timeout: float = Field(30.0, gt=0, le=3600)
    """Seconds a client may stall while it reads an answer; then the connection is closed."""
    drain: float = Field(1.0, ge=0, le=600)
    """Seconds between SIGTERM (readyz answers 503) and the end of listening."""
    connections: int = Field(512, ge=1, le=100_000)
    """Open connections of a worker; more are closed at once."""
    max_body: int = Field(20 * 2**20, ge=1)
    """Bytes of a request body (units: ``20MiB``)."""
    body_memory: int = Field(256 * 2**20, ge=1)
    """Bytes of all bodies that a worker is reading or holding (units as above)."""
    max_pixels: int = Field(25_000_000, ge=1)
    """Pixels of an image, checked before it is decoded (``25M``)."""
    max_side: int = Field(16384, ge=1, le=65500)
    """Longest side of an image in pixels."""
    max_network_pixels: int = Field(2_100_000, ge=1024)
    """Pixels that enter the network at once; larger images are tiled."""
    tile: int | None = Field(None, ge=32, le=8192)
    """Side of a tile in pixels; null: the training crop, at least 512 where the graph is dynamic."""
    formats: tuple[str, ...] = ("jpeg", "png", "webp", "bmp")
    """Image formats that are decoded, recognised by content. tiff and gif are off by default."""
    api_keys: tuple[str, ...] = ()
    """SHA-256 (hex) of accepted API keys; empty: no key is asked for."""
    api_keys_file: str | None = None
    """File with one SHA-256 (hex) on a line, ``#`` comments."""
    admin_keys: tuple[str, ...] = ()
    """SHA-256 (hex) of keys that may call ``POST /v1/reload``; empty: only SIGHUP reloads."""
    rate: float = Field(0.0, ge=0)
    """Requests a second for each key (or address); 0: no limit. Divided among workers."""
    rate_burst: int = Field(20, ge=1)
    """Requests that may come at once before the rate counts."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may call (``https://example.org``); ``*`` allows every one."""
    access_log: bool = True
    """One JSON line on standard output for each request."""
    otel: bool = False
    """OpenTelemetry spans (BentoML's tracing settings say where they go)."""
    ui: bool = True
    """The page at ``/``."""
    confidence_every: int = Field(32, ge=0)
    """Measure confidence for drift on every n-th mask request; 0 only when a client asks for it."""
    keep_hard: str | None = None
    """Folder that keeps images whose labels the linear head doubts, for labelling; null keeps none."""
    keep_hard_below: float = Field(0.8, ge=0, le=1)
    """Mean agreement below which an image is kept."""
    keep_hard_bytes: int = Field(2**30, ge=1)
    """Bytes of the folder; nothing more is kept when it is full."""

    @field_validator("max_body", "body_memory", "max_pixels", "keep_hard_bytes", mode="before")
    @classmethod
    def _units(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            raise ValueError("give a number of bytes or pixels, as 20MiB or 25M")
        return round(float(match[1]) * _UNITS[match[2].upper()])

    @field_validator("formats", "api_keys", "admin_keys", "cors", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(word.strip() for word in value.split(",") if word.strip())
        return value

    @field_validator("formats")
    @classmethod
    def _known_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in value if name not in FORMATS]
        if unknown or not value:
            raise ValueError(f"got {', '.join(unknown) or 'nothing'}; known: {', '.join(FORMATS)}")
        return value

    @field_validator("cors")
    @classmethod
    def _origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            parts = urlsplit(origin)
            host = parts.netloc.lower().removesuffix(_OWN_PORT.get(parts.scheme, "-"))
            written = f"{parts.scheme}://{host}" if parts.netloc else "https://example.org"
            if not _ORIGIN.fullmatch(origin) or (parts.netloc and origin != written):
                raise ValueError(
                    f"no browser sends the origin {origin!r}; write scheme://host or scheme://host:port, "
                    f"as {written}, or * for all"
                )
        return value

    @field_validator("api_keys", "admin_keys")
    @classmethod
    def _hashes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        lowered = tuple(key.lower() for key in value)
        if not all(_SHA256.fullmatch(key) for key in lowered):
            raise ValueError("give SHA-256 as 64 hex digits: printf %s KEY | sha256sum")
        return lowered

    @model_validator(mode="after")
    def _check(self) -> Settings:
        if self.body_memory < self.max_body:
            raise ValueError("body_memory must be at least max_body")
        return self

    @property
    def pool_threads(self) -> int:
        """Requests that a worker computes at a time, on a CPU."""
        if self.threads is not None:
            return self.threads
        return max(1, usable_cores() // (self.workers * self.intra_threads))

    def key_hashes(self) -> frozenset[bytes]:
        """Accepted API keys as SHA-256 hex, from the setting and the file.

        Raises:
            SettingsError: If the file is missing or has a line that is not a hash.
        """
        keys = set(self.api_keys)
        if self.api_keys_file is not None:
            try:
                lines = Path(self.api_keys_file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"{PREFIX}API_KEYS_FILE cannot be read: {error}") from error
            words = [line.split("#")[0].strip().lower() for line in lines]
            words = [word for word in words if word]
            if not words or not all(_SHA256.fullmatch(word) for word in words):
                raise SettingsError(
                    f"{PREFIX}API_KEYS_FILE {self.api_keys_file} needs one SHA-256 of 64 hex "
                    "digits a line: printf %s KEY | sha256sum"
                )
            keys.update(words)
        return frozenset(key.encode() for key in keys)


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the YAML named by ``PROTOSEG_CONFIG`` and ``PROTOSEG_*`` variables.

    Raises:
        SettingsError: With one line that names the variable or key, the value and the cure.
    """
    environ = os.environ if environ is None else environ
    raw: dict[str, Any] = {}
    sources: dict[str, str] = {}
    config = environ.get(f"{PREFIX}CONFIG")
    if config:
        try:
            loaded = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise SettingsError(f"{PREFIX}CONFIG {config} cannot be read: {reason}") from error
        if not isinstance(loaded, dict | None):
            raise SettingsError(f"{PREFIX}CONFIG {config} must be a mapping of settings")
        raw = {str(key): value for key, value in (loaded or {}).items()}
        sources = {key: f"{config}: {key}" for key in raw}
    for name, value in environ.items():
        suffix = name.removeprefix(PREFIX)
        if suffix == name or _FOREIGN.fullmatch(suffix):
            continue
        key = suffix.lower()
        sources[key] = name
        # an empty variable is the usual way to say "not set" in compose files
        if value == "":
            raw.pop(key, None)
        else:
            raw[key] = value
    try:
        settings = Settings.model_validate(raw)
        settings.key_hashes()
    except ValidationError as error:
        names = {"": "settings", **sources}
        raise SettingsError("; ".join(validation_problems(error, names, _SECRET))) from error
    return settings
