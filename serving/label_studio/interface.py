"""Reads a labelling interface: where the brush is, and which label is which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from protoseg.annotate.formats.label_studio import Controls
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo


@dataclass(frozen=True)
class Interface:
    """What a project's interface says about the regions that fit it."""

    controls: Controls
    """Names of brush, image, and the key of the image's address."""
    labels: dict[str, str]
    """Label by class name."""


def read_interface(text: str, classes: Sequence[ClassInfo]) -> Interface:
    """The brush of a labelling interface.

    A label is a class's when its value, its alias or one of its ``predicted_values`` (split by commas) is the
    class's name.

    Args:
        text: The interface's XML.
        classes: Those of the model.

    Raises:
        UserError: If there is no brush over an image, or none of its labels is a class.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UserError("the labelling interface declares entities, which no interface needs")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise UserError(f"the labelling interface is no XML ({error})") from error
    images = {item.get("name"): item.get("value", "") for item in root.iter("Image")}
    brush = next((item for item in root.iter("BrushLabels") if item.get("toName") in images), None)
    if brush is None:
        raise UserError(
            "the labelling interface has no <BrushLabels> over an <Image>; `protoseg predict --format "
            "label-studio` writes one that fits (config.xml)"
        )
    image = str(brush.get("toName"))
    known = {item.name for item in classes}
    labels: dict[str, str] = {}
    for label in brush.iter("Label"):
        value = label.get("value", "")
        names = [value, label.get("alias", ""), *label.get("predicted_values", "").split(",")]
        for name in (name.strip() for name in names):
            if name in known:
                labels.setdefault(name, label.get("alias") or value)
    if not labels:
        offered = ", ".join(label.get("value", "") for label in brush.iter("Label"))
        raise UserError(
            f"no label of the interface ({offered}) is a class of the model ({', '.join(sorted(known))}); "
            'name labels like classes, or add predicted_values="CLASS" to a <Label>'
        )
    key = images[image].removeprefix("$") or Controls.image_key
    return Interface(Controls(str(brush.get("name")), image, key), labels)
