"""Every setting as text, for ``python -m protoseg.train --settings``."""

from __future__ import annotations

import json

from protoseg.config.presets import preset_values
from protoseg.config.sections import Config, MethodConfig
from protoseg.manifest import Section


def describe_settings() -> str:
    """Every setting with its default, what presets set instead, and its meaning, as text."""
    presets = preset_values()
    lines = [f"method.preset is {MethodConfig().preset} unless set; what it sets is marked below with *\n"]

    def describe(model: type[Section], prefix: str) -> None:
        for key, item in model.model_fields.items():
            name = f"{prefix}.{key}"
            default = item.get_default(call_default_factory=True)
            if isinstance(default, Section):
                describe(type(default), name)
                continue
            lines.append(f"  {name}={json.dumps(default, default=str)}")
            for preset, value in presets.get(name, []):
                mark = "*" if preset == f"method.preset={MethodConfig().preset}" else " "
                lines.append(f"    {mark} {json.dumps(value)} with {preset}")
            lines.append("      " + " ".join((item.description or "").split()))

    for section, field in Config.model_fields.items():
        lines.append(f"{section}: {field.description}")
        annotation = field.annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, Section)
        describe(annotation, section)
    return "\n".join(lines) + "\n"
