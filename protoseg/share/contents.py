"""What a run, a checkpoint or a bundle gives away, and what stays: states, engines, paths of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, Literal

import yaml

from protoseg.errors import UserError
from protoseg.manifest import MANIFEST_NAME, Manifest, read_manifest

if TYPE_CHECKING:
    from protoseg.checkpoint import CheckpointInfo

Part = Literal["checkpoint", "bundle"]
PICTURES = ("views.png", "curves.png", "confusion.png")
_PRIVATE_PATH = re.compile(r"[/~\\]|file:|[A-Za-z]:[\\/]|(.*[\\/])?\.\.([\\/]|$)")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_SECRET_KEY = re.compile(r"token|secret|password|api_?key", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """What is there to share."""

    folder: Path
    """The folder that was named; the card goes there."""
    checkpoint: Path | None = None
    """Checkpoint folder."""
    info: CheckpointInfo | None = None
    """Its description."""
    bundle: Path | None = None
    """Bundle folder."""
    manifest: Manifest | None = None
    """Its manifest, with the files that are shared: proven, and no engines."""
    left_out: tuple[str, ...] = ()
    """Files of the bundle that are not."""

    @property
    def mismatched(self) -> bool:
        """Whether checkpoint and bundle are of different trainings."""
        if self.info is None or self.manifest is None:
            return False
        return self.info.weights_sha256 != self.manifest.checkpoint_sha256

    def pictures(self) -> list[Path]:
        """The run's pictures: of the views, the last validation images, the curves, the confusion."""
        steps = sorted((self.folder / "pictures").glob("step_*.png"))[-1:]
        return [p for p in (*steps, *(self.folder / name for name in PICTURES)) if p.is_file()]


def find_model(path: str | Path, only: Part | None = None) -> Model:
    """The model behind a run folder, a checkpoint folder or a bundle folder.

    Args:
        path: The folder.
        only: Leave the other part out.

    Raises:
        UserError: If there is none, or it is damaged.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run, a checkpoint or a bundle")
    model = Model(folder)
    bundle = folder if (folder / MANIFEST_NAME).is_file() else folder / "bundle"
    if only != "checkpoint" and (bundle / MANIFEST_NAME).is_file():
        whole = read_manifest(bundle)
        kept = [f for f in whole.files if f.kind == "onnx" and f.parity.status == "passed"]
        if not kept:
            raise UserError(f"{bundle} has no proven ONNX file; prove it: python -m export.parity {bundle}")
        model = Model(
            folder, bundle=bundle, manifest=whole.model_copy(update={"files": kept}),
            left_out=tuple(f.name for f in whole.files if f not in kept),
        )  # fmt: skip
    # a bundle alone needs no torch, which takes seconds and may not be installed
    described = [*folder.glob("config.json"), *folder.glob("checkpoint*/config.json")]
    if only != "bundle" and bundle != folder and described:
        from protoseg.checkpoint import read_info, resolve_checkpoint

        checkpoint = resolve_checkpoint(folder)
        model = Model(folder, checkpoint, read_info(checkpoint), model.bundle, model.manifest, model.left_out)
    if model.checkpoint is None and model.bundle is None:
        raise UserError(f"{folder} holds no {only or 'checkpoint and no bundle'}; train first, or export")
    return model


@dataclass
class Shared:
    """Files of a repository by their path in it, and what was changed on the way."""

    files: dict[str, Path | bytes] = field(default_factory=dict)
    """Content: a local file, or the bytes that take its place."""
    replaced: list[str] = field(default_factory=list)
    """``key: old -> new`` of each value that is not shared as it is."""
    images: list[str] = field(default_factory=list)
    """Files that show the user's own images."""

    def sizes(self) -> dict[str, int]:
        """Bytes by path."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def add_text(self, name: str, file: Path, load: Callable[[str], Any], dump: Callable[[Any], str]) -> None:
        """A settings file without paths and secrets; to the byte as it is where it has none."""
        text, changes = file.read_text(encoding="utf-8"), list[str]()
        plain = _shareable(load(text), "", changes)
        self.files[name] = (dump(plain) if changes else text).encode()
        self.replaced += [f"{name}: {change}" for change in changes]


def _shareable(value: Any, key: str, changes: list[str]) -> Any:
    if isinstance(value, dict):
        return {k: _shareable(v, f"{key}.{k}".lstrip("."), changes) for k, v in value.items()}
    if isinstance(value, list):
        return [_shareable(item, key, changes) for item in value]
    plain = shareable(key, value)
    if plain != value:
        changes.append(f"{key}: {'a secret' if plain is None else value} -> {plain}")
    return plain


def shareable(key: str, value: Any) -> Any:
    """A setting as strangers may see it: of a path the last name, of an URL no password, no secret at all.

    Args:
        key: Its name, with its sections; one that ends like ``token`` has its value left out.
        value: Its value.
    """
    if not isinstance(value, str):
        return value
    if _SECRET_KEY.search(key.rpartition(".")[2]):
        return None
    if _PRIVATE_PATH.match(value):
        name = PureWindowsPath(value.rstrip("/\\")).name
        return "." if name in ("", "..", "~") else name
    return _CREDENTIALS.sub("", value)


def collect(model: Model, *, student: bool = False, pictures: bool = True) -> Shared:
    """The files to share, but for the card.

    Args:
        model: What is there.
        student: With the student's weights, which evaluation compares with.
        pictures: With the run's pictures.

    Raises:
        UserError: If a file that belongs to it is missing.
    """
    shared = Shared()
    if model.checkpoint is not None:
        _add_checkpoint(shared, model.checkpoint, student)
    if model.bundle is not None and model.manifest is not None:
        _add_bundle(shared, model.bundle, model.manifest)
    if model.checkpoint != model.folder != model.bundle:
        settings = model.folder / "config.yaml"
        if settings.is_file():
            shared.add_text("config.yaml", settings, yaml.safe_load, _yaml)
        for file in model.pictures() if pictures else []:
            name = file.relative_to(model.folder).as_posix()
            shared.files[name] = file
            if name not in ("curves.png", "confusion.png"):
                shared.images.append(name)
    for name, content in shared.files.items():
        if isinstance(content, Path) and not content.is_file():
            raise UserError(f"{content} is missing, which {name} of the repository is made from")
    return shared


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _add_checkpoint(shared: Shared, folder: Path, student: bool) -> None:
    from protoseg.checkpoint import INFO_NAME, NOVELTY_NAME, STUDENT_NAME, WEIGHTS_NAME

    shared.add_text(f"checkpoint/{INFO_NAME}", folder / INFO_NAME, json.loads, _json)
    for name in (WEIGHTS_NAME, STUDENT_NAME) if student else (WEIGHTS_NAME,):
        shared.files[f"checkpoint/{name}"] = folder / name
    if (folder / NOVELTY_NAME).is_file():
        shared.files[f"checkpoint/{NOVELTY_NAME}"] = folder / NOVELTY_NAME


def _add_bundle(shared: Shared, folder: Path, manifest: Manifest) -> None:
    shared.files[f"bundle/{MANIFEST_NAME}"] = (manifest.model_dump_json(indent=2) + "\n").encode()
    samples = [name for sample in manifest.samples for name in sample.sha256]
    atlas = [] if manifest.atlas is None else list(manifest.atlas.sha256)
    for name in (*(item.name for item in manifest.files), *samples, *atlas):
        shared.files[f"bundle/{name}"] = folder / name
    shared.images += [f"bundle/{sample.image}" for sample in manifest.samples]
    shared.images += [f"bundle/{name}" for name in atlas if name.endswith(".jpg")]
