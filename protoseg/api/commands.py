"""The commands as functions: ``protoseg.train``, ``protoseg.evaluate``, ``protoseg.export`` and others.

Each does what its command does with the same code, raises ``UserError`` where the command prints one, and
leaves signals and logging of the calling program as they were. Torch is imported when one is called.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from protoseg.api.program import PathLike, messages, setting_texts, signals_restored
from protoseg.api.prototypes import adapt as adapt
from protoseg.api.prototypes import explain as explain
from protoseg.api.prototypes import novelty as novelty
from protoseg.config.load import find_config, merge, parse_config, read_config
from protoseg.config.sections import Config
from protoseg.config.yaml_names import find_spots
from protoseg.errors import ConfigError, ExportError, check_choice
from protoseg.manifest import Head, Precision

if TYPE_CHECKING:
    from export.onnx import Exported
    from protoseg.evaluate.report import Evaluation, Split

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A training that has ended; it can be given where a path is asked for."""

    folder: Path
    """The run folder."""
    config: Config
    """All settings, defaults included."""
    metrics: dict[str, Any]
    """Metrics of its last checkpoint: ``step``, and under ``val`` ``miou`` by head, ``per_class`` and more;
    shares in [0, 1]. Empty if there was no evaluation yet."""
    finished: bool
    """False if a signal (Ctrl-C, a notebook's stop button) ended it; ``resume=True`` goes on."""

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        state = "finished" if self.finished else "stopped"
        values = ", ".join(f"{head} {value:.1%}" for head, value in self.miou.items())
        return f"<Run {self.folder}: {state}, step {self.metrics.get('step', 0)}; val mIoU {values or '-'}>"

    @property
    def miou(self) -> dict[str, float]:
        """Mean IoU on the validation images by head, in [0, 1]."""
        return dict((self.metrics.get("val") or {}).get("miou") or {})


def train(
    config: PathLike | Config | Settings | None = None,
    *,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Train as ``python -m protoseg.train`` does, in this process.

    Messages are those of the logger ``protoseg``: a program that has set up logging gets them as it wants
    them, else they go to the standard output as from the command. The command's seed is set for torch.

    Args:
        config: A YAML file (as ``--config``), settings as a mapping, a ``Config``, or None for the
            command's default, ``configs/quickstart.yaml``. Keys of a mapping are sections with mappings, or
            dotted: ``{"train": {"max_steps": 100}, "run.name": "mine"}``.
        resume: Go on from the run's last saved state (or start, if none).
        settings: Sections over ``config``, as ``train={"max_steps": 100}, run={"name": "mine"}``.

    Returns:
        The run. An earlier run of the same name is moved aside, never overwritten.

    Raises:
        UserError: For wrong settings, data that cannot be used, or a loss that is not finite.
    """
    resolved = resolve_config(config, settings)
    from accelerate.state import AcceleratorState

    from protoseg.checkpoint import CHECKPOINT_DIR, INFO_NAME, read_info
    from protoseg.train.loop import train as run_training

    folder, stopped = resolved.run.path, 1
    before = dict(AcceleratorState._shared_state)
    with messages("protoseg"), signals_restored():
        try:
            code = run_training(resolved, resume=resume, stopped_code=stopped, own_logging=False)
        finally:
            if not before:
                # accelerate keeps the first run's precision for the whole process, and refuses another one
                AcceleratorState._reset_state()
    checkpoint = folder / CHECKPOINT_DIR
    metrics = read_info(checkpoint).metrics if (checkpoint / INFO_NAME).is_file() else {}
    return Run(folder, resolved, metrics, finished=code != stopped)


def resolve_config(config: PathLike | Config | Settings | None, over: Settings) -> Config:
    """The settings that ``train`` is asked for.

    Raises:
        ConfigError: With a text that names key and cure.
    """
    top = _nested(over)
    if isinstance(config, Config):
        return parse_config(merge(config.model_dump(), top), "settings") if top else config
    if isinstance(config, Mapping):
        return parse_config(merge(_nested(config), top), "settings")
    from protoseg.train.__main__ import DEFAULT_CONFIG

    file = Path(DEFAULT_CONFIG if config is None else config).expanduser()
    raw = read_config(file)
    spots = find_spots(find_config(file).read_text(encoding="utf-8-sig"))
    return parse_config(merge(raw, top), str(file), spots)


def _nested(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if not isinstance(key, str):
            raise ConfigError(f"settings have names as keys, got {key!r}")
        plain = _nested(value) if isinstance(value, Mapping) else value
        for part in reversed(key.split(".")):
            plain = {part: plain}
        found = merge(found, plain)
    return found


def evaluate(
    checkpoint: PathLike,
    *,
    split: Split = "val",
    heads: Sequence[Head] | None = None,
    mode: Literal["whole", "sliding"] | None = None,
    student: bool = True,
    boundary: bool = True,
    device: str | None = None,
    data: Settings | None = None,
    json_path: PathLike | None = None,
    confusion_path: PathLike | None = None,
) -> Evaluation | None:
    """Measure a checkpoint as ``python -m protoseg.evaluate`` does, and write the same files.

    Args:
        checkpoint: Run folder, checkpoint folder, a file in it, or what ``train`` gave.
        split: Images to measure on, ``val`` or ``labeled``.
        heads: Heads to measure; None for all.
        mode: ``whole`` images, or ``sliding`` windows with averaged logits; None as in training.
        student: Measure the student too.
        boundary: Measure the boundary F-score, the slowest part on a CPU.
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; None takes what accelerate finds.
        data: Data settings over the stored ones, as ``{"root": "/data/camvid"}``.
        json_path: Where the numbers go; None: ``evaluation.json`` in the run folder.
        confusion_path: Where the confusion matrix goes; None: ``confusion.png`` in the run folder.

    Returns:
        The numbers; ``print`` shows the command's tables. None on processes of ``accelerate launch`` but
        the first.

    Raises:
        UserError: If the checkpoint or the data cannot be used.
    """
    from protoseg.evaluate.report import Split as Splits
    from protoseg.evaluate.report import evaluate_checkpoint

    check_choice("split", split, get_args(Splits))
    check_choice("heads", list(heads or ()), get_args(Head))
    check_choice("mode", mode, ("whole", "sliding", None))
    return evaluate_checkpoint(
        checkpoint, split=split, heads=list(heads or get_args(Head)), mode=mode, student=student,
        boundary=boundary, device=device, data=setting_texts(data),
        json_path=json_path, confusion_path=confusion_path,
    )  # fmt: skip


def export(
    checkpoint: PathLike,
    output: PathLike | None = None,
    *,
    precision: Precision | Sequence[Precision] = "fp32",
    head: Head | None = None,
    outputs: Sequence[str] = ("agreement",),
    image: Literal["uint8", "nhwc", "float32"] = "uint8",
    static: tuple[int, int, int] | None = None,
    opset: int | None = None,
    calibrate: PathLike | None = None,
    calibration_images: int | None = None,
    explain: bool = False,
) -> Exported:
    """Turn a checkpoint into a proven bundle, as ``python -m export.onnx`` does.

    Args:
        checkpoint: Run folder, checkpoint folder, a file in it, or what ``train`` gave.
        output: Bundle folder; None: ``bundle`` beside the checkpoint.
        precision: Files to make beside fp32: ``fp16``, ``int8`` (TensorRT), ``int8-cpu`` (ONNX Runtime).
        head: What labels and confidence come from; None: what has the highest validation mIoU in the
            checkpoint.
        outputs: Graph outputs beside labels and confidence: ``agreement``, ``logits``, ``logits_stride``,
            ``prototype``, ``embedding``, ``similarity``, and after ``protoseg.novelty`` ``novelty``.
        image: The graph's input: ``uint8`` NCHW, ``nhwc`` (uint8), or ``float32`` NCHW in [0, 255].
        static: Fixed (batch, height, width); None for dynamic axes.
        opset: ONNX operator set; None for the command's default.
        calibrate: Folder of images for calibration; None: the run's unlabelled images.
        calibration_images: At most this many; None for the command's default.
        explain: Add what the service explains by: the outputs ``prototype`` and ``similarity``, and the
            training patches of the prototypes.

    Returns:
        The bundle: ``protoseg.load`` takes it. Its ``failed`` files (of a lower precision) are not served.

    Raises:
        ExportError: If the fp32 graph does not compute what torch does; the rejected bundle is named.
        UserError: If the checkpoint, the settings or the images do not allow it.
    """
    # the one tool above this package that is called from it
    from export import onnx as command

    check_choice("head", head, (*get_args(Head), None))
    check_choice("image", image, command.LAYOUTS)
    if static is not None and (len(static) != 3 or min(static) < 1):
        raise ExportError(f"static must be (batch, height, width), each at least 1, got {static!r}")
    options: dict[str, Any] = {"opset": opset, "num_calibration": calibration_images}
    try:
        precisions = command.parse_precisions(_listed(precision))
        names = command.parse_outputs(_listed(outputs))
    except argparse.ArgumentTypeError as error:
        raise ExportError(str(error)) from None
    with messages("protoseg", "export"):
        exported = command.export_checkpoint(
            checkpoint, output, head=head, precisions=precisions, outputs=names,
            layout=command.LAYOUTS[image], static=static, calibrate=calibrate, explain=explain,
            **{key: value for key, value in options.items() if value is not None},
        )  # fmt: skip
    if not exported.servable:
        raise ExportError(f"{exported.reports()}\nnot servable, kept in {exported.folder}")
    return exported


def _listed(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else ",".join(names)
