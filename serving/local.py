"""A bundle that segments images in this process, without torch. The answers are those of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from protoseg.api.inputs import FileReader, Pixels
from protoseg.api.model import Maps, Model, Wanted, plain_reader
from protoseg.api.result import ModelInfo
from protoseg.cores import usable_cores
from protoseg.data.pictures import PLAIN
from protoseg.errors import DataError, ManifestError, UserError
from protoseg.explain.reasons import Grounds
from protoseg.manifest import MANIFEST_NAME, Head, Precision, read_manifest
from protoseg.records import validation_problems
from serving.errors import LACKING, ServingError
from serving.model.open import open_model
from serving.pixels.decode import ImageLimits, decode, sniff
from serving.settings import FORMATS, Settings, SettingsError

# one's own files, not a stranger's: what training takes
_LIMITS = ImageLimits(PLAIN.max_pixels, max_side=PLAIN.max_pixels, formats=FORMATS)


class Bundle(Model):
    """A loaded bundle: the best of its proven files that runs here, after the service's self test.

    Thread-safe.

    Args:
        path: Bundle folder, or a network file in it (``model.onnx``, an engine).
        head: The head that the bundle must have; a bundle has one. None takes what it has.
        device: ``cpu`` or ``cuda``; None takes what works here, as the service does.
        precision: Which of its files; None takes the fp32 graph, or any proven engine.
        threads: CPU threads for one image; None takes all cores.

    Raises:
        UserError: If there is no bundle, none of its files can be used, or it has another head.
    """

    kind = "bundle"

    def __init__(
        self,
        path: str | Path,
        *,
        head: Head | None = None,
        device: Literal["cpu", "cuda"] | None = None,
        precision: Precision | None = None,
        threads: int | None = None,
    ) -> None:
        folder, file = _folder_and_file(Path(path).expanduser())
        raw: dict[str, Any] = {
            "model": str(folder), "device": device or "auto", "precision": precision, "batch_max": 1,
            "intra_threads": min(usable_cores(), 256) if threads is None else threads,
        }  # fmt: skip
        if file is not None:
            raw |= _settings_of(folder, file, precision)
        self._model = open_model(folder, _settings(raw))
        manifest = self._model.manifest
        if head is not None and head != manifest.graph.head:
            self._model.close()
            raise UserError(
                f"{folder} has the {manifest.graph.head} head, not {head}; export it with: "
                f"python -m export.onnx CKPT --head {head}"
            )
        reader, how = plain_reader(manifest.input)
        info = ModelInfo(manifest.name, manifest.version, manifest.graph.head, tuple(manifest.classes))
        metrics = manifest.training_metrics
        super().__init__(folder, info, manifest.input, metrics, _Reader(reader), how)

    @property
    def tells(self) -> frozenset[str]:
        """What it can tell beside labels."""
        model = self._model
        can = {"confidence": model.has_confidence, "agreement": model.has_label_probability,
               "novelty": model.has_novelty}  # fmt: skip
        return frozenset(name for name, has in can.items() if has)

    @property
    def device(self) -> str:
        """What it computes on, with the runtime's name."""
        return self._model.runtime

    @property
    def file(self) -> str:
        """Name of the network file in use."""
        return self._model.bundle.artifact.name

    def _check(self, wanted: Wanted) -> None:
        if wanted.novelty and not self._model.has_novelty:
            raise UserError(f"{self.path} has {LACKING['novelty']}")
        if wanted.explain and self._model.atlas is None:
            raise UserError(f"{self.path} has {LACKING['explain']}")

    def _predict(self, image: Pixels, wanted: Wanted) -> Maps:
        # the linear head's belief in its own label is the confidence: outside of the graph it is at hand. At
        # another size the service enlarges one as logits and the other as it is, and so does this
        own = self.info.head == "linear" and self._model.fused and self.input.resize.mode == "none"
        try:
            with self._model as model:
                found = model.predict(
                    image, confidence=wanted.scores, label_probability=wanted.scores and not own,
                    nearest=wanted.explain, novelty=wanted.novelty, tile=wanted.windows,
                )  # fmt: skip
        except ServingError as error:
            raise UserError(error.message) from error
        grounds, files = None, self._model.manifest.atlas
        if found.nearest is not None and self._model.atlas is not None and files is not None:
            grounds = Grounds.of(found.nearest, self.path / files.folder, self._model.atlas)
        agreement = found.label_probability
        if own and self._model.has_label_probability:
            agreement = found.confidence
        return Maps(found.labels, found.confidence, agreement, found.novelty, grounds)

    def close(self) -> None:
        """Free the runtime."""
        self._model.close()


class _Reader:
    """Decodes what the service knows as it does, and reads the rest (``.npy``, HEIC) as training does."""

    def __init__(self, plain: FileReader) -> None:
        self._plain = plain

    def file(self, path: Path) -> Pixels:
        data = path.read_bytes()
        return self._decode(data, f"image {path}") if sniff(data) in FORMATS else self._plain.file(path)

    def data(self, data: bytes) -> Pixels:
        if sniff(data) not in FORMATS:
            return self._plain.data(data)
        return self._decode(data, f"image of {len(data)} bytes")

    def _decode(self, data: bytes, what: str) -> Pixels:
        how = self._plain.how
        try:
            return decode(
                data, _LIMITS, self._plain.channels, how.value_range, "apply" if how.upright else "ignore"
            )
        except ServingError as error:
            raise DataError(f"{what}: {error.message}") from error


def _folder_and_file(path: Path) -> tuple[Path, str | None]:
    if path.is_file() and path.name != MANIFEST_NAME:
        return path.parent.resolve(), path.name
    return (path.parent if path.is_file() else path).resolve(), None


def _settings(raw: dict[str, Any]) -> Settings:
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        names = {"intra_threads": "threads"}
        raise SettingsError("; ".join(validation_problems(error, names))) from error


def _settings_of(folder: Path, file: str, precision: str | None) -> dict[str, Any]:
    """Settings that choose one file of a bundle.

    Raises:
        UserError: If it is none that can be chosen.
    """
    artifact = read_manifest(folder).file(file)
    if artifact.cut_of is not None:
        raise ManifestError(
            f"{file} is a part of {artifact.cut_of}; load that, or the bundle folder {folder}"
        )
    if precision not in (None, artifact.precision):
        raise UserError(f"{file} is {artifact.precision}, not {precision}")
    return {"precision": artifact.precision, "backend": "onnx" if artifact.kind == "onnx" else "tensorrt"}
