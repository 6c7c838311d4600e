"""All sections of a configuration, and what must hold between them.

The sections are in ``data``, ``model``, ``method`` and ``training``, each setting with its default, unit and
range; defaults live there and nowhere else. Nothing here imports torch, so that a wrong key is reported in a
fraction of a second.
"""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator

from protoseg.config.data import DataConfig, ViewConfig
from protoseg.config.method import LossConfig, MethodConfig, PrototypeConfig, PseudoLabelConfig
from protoseg.config.model import ModelConfig
from protoseg.config.training import EvalConfig, OptimConfig, RunConfig, TrainConfig
from protoseg.records import Section


class Config(Section):
    """Everything about a run."""

    run: RunConfig = RunConfig()
    """Names and folders."""
    data: DataConfig = DataConfig()
    """Images and masks."""
    views: ViewConfig = ViewConfig()
    """Weak and strong views."""
    model: ModelConfig = ModelConfig()
    """The network."""
    method: MethodConfig = MethodConfig()
    """Losses in use."""
    prototypes: PrototypeConfig = PrototypeConfig()
    """The prototype head."""
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    """Which teacher labels are believed."""
    loss: LossConfig = LossConfig()
    """Losses."""
    optim: OptimConfig = OptimConfig()
    """Optimiser."""
    train: TrainConfig = TrainConfig(max_steps=1000)
    """The loop."""
    eval: EvalConfig = EvalConfig()
    """Validation."""

    @field_validator("*", mode="before")
    @classmethod
    def _null_section(cls, value: Any) -> Any:
        return {} if value is None else value

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.method.prototypes is False and self.pseudo_labels.agreement == "heads":
            raise ValueError("pseudo_labels.agreement=heads needs method.prototypes=true")
        if self.method.prototypes is False and self.eval.best != "linear":
            raise ValueError(f"eval.best={self.eval.best} needs method.prototypes=true")
        if self.method.prototypes is False and self.pseudo_labels.source != "linear":
            raise ValueError(f"pseudo_labels.source={self.pseudo_labels.source} needs method.prototypes=true")
        if self.method.prototypes and self.prototypes.feature != "decoder":
            if self.prototypes.projection == "none":
                raise ValueError(
                    f"prototypes.feature={self.prototypes.feature} needs prototypes.projection=linear or mlp"
                )
            if self.model.architecture == "dpt":
                raise ValueError(
                    "prototypes.feature is of convolutional encoders; model.architecture=dpt has none"
                )
        if self.pseudo_labels.folder is not None and self.data.kind == "synthetic":
            raise ValueError("pseudo_labels.folder goes by image files; data.kind=synthetic has none")
        if self.model.architecture == "dpt" and "vit" not in self.model.encoder:
            raise ValueError(
                f"model.architecture=dpt needs a vision transformer, got encoder {self.model.encoder!r}; "
                "try model.encoder=vit_small_patch14_dinov2.lvd142m"
            )
        if self.model.feature == "concat" and self.model.architecture != "deeplabv3plus":
            raise ValueError("model.feature=concat needs model.architecture=deeplabv3plus")
        if self.method.unlabeled and self.data.kind == "files" and self.data.unlabeled is None:
            raise ValueError(
                f"method.preset={self.method.preset} uses unlabelled images: set data.unlabeled, "
                "or method.preset=supervised"
            )
        return self
