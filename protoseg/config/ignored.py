"""Settings that are given and have no effect in a run. Never needs torch."""

from __future__ import annotations

from protoseg.config.method import PrototypeConfig, PseudoLabelConfig
from protoseg.config.sections import Config


def ignored_settings(config: Config) -> list[str]:
    """A sentence for each group of settings without effect."""
    found = []
    labels, prototypes = config.pseudo_labels, config.prototypes
    if config.data.cache == "device" and config.data.num_workers:
        found.append("data.num_workers: no effect with data.cache=device, which leaves nothing to load")
    if not config.method.unlabeled:
        given = [key for key in ("teacher", "folder", "target_precision") if getattr(labels, key) is not None]
        given += [] if labels.calibration == "none" else ["calibration"]
        names = [f"pseudo_labels.{key}" for key in given]
        names += ["loss.unsupervised_ramp"] if config.loss.unsupervised_ramp else []
        names += ["prototypes.consistency"] if prototypes.consistency and config.method.prototypes else []
        if names:
            found.append(f"{', '.join(names)}: no effect without unlabelled images (method.unlabeled=false)")
    if not config.method.prototypes:
        given = ["consistency"] if prototypes.consistency else []
        given += ["update_from"] if prototypes.update_from == "clean" else []
        given += ["feature"] if prototypes.feature != "decoder" else []
        if given:
            names = [f"prototypes.{key}" for key in given]
            found.append(f"{', '.join(names)}: no effect without prototypes (method.prototypes=false)")
    elif not prototypes.consistency:
        keys = ("consistency_temperature", "consistency_teacher_temperature", "consistency_pixels")
        names = [f"prototypes.{key}" for key in keys if changed(prototypes, key)]
        if names:
            found.append(f"{', '.join(names)}: no effect with prototypes.consistency=0")
    if not labels.from_outside and changed(labels, "teacher_until"):
        found.append("pseudo_labels.teacher_until: no effect without pseudo_labels.teacher or folder")
    if labels.teacher is None and labels.teacher_size is not None:
        found.append("pseudo_labels.teacher_size: no effect without pseudo_labels.teacher")
    if labels.source != "reweighted" and changed(labels, "distance_temperature"):
        found.append("pseudo_labels.distance_temperature: no effect but with pseudo_labels.source=reweighted")
    if labels.target_precision is not None and changed(labels, "threshold"):
        found.append("pseudo_labels.threshold: pseudo_labels.target_precision chooses it")
    return found


def changed(section: PrototypeConfig | PseudoLabelConfig, key: str) -> bool:
    """Whether a setting differs from its default."""
    return bool(getattr(section, key) != type(section).model_fields[key].default)
