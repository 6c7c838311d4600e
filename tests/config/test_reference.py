"""Settings as text and as tables: every one is there, with its meaning."""

import re

from protoseg.config.presets import METHOD_PRESETS, MODEL_PRESETS
from protoseg.config.reference import describe_settings, model_table, preset_table, training_tables
from protoseg.config.sections import Config
from protoseg.records import Section
from serving.settings import PREFIX, Settings

SERVICE = model_table(Settings, "variable", PREFIX, upper=True)


def fields(section, prefix):
    """Dotted names of every setting below a section."""
    for key, item in section.model_fields.items():
        kind = item.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def test_the_reference_has_every_setting_once_with_its_meaning():
    text = training_tables()
    for name, item in fields(Config, ""):
        (row,) = re.findall(rf"^\| `{re.escape(name)}` \|.*$", text, re.M)
        meaning = " ".join(item.description.split()).replace("``", "`")
        assert meaning.replace("|", "\\|") in row, name
    assert len(re.findall(r"^\| `\w+\.", text, re.M)) == len(list(fields(Config, ""))) + 2, (
        "two inner sections"
    )


def test_the_reference_tells_ranges_choices_defaults_and_presets():
    text = training_tables()
    for row in (
        "| `data.ignore_index` | integer, at least `0`, at most `255` | `255` |",
        "| `optim.lr` | number, above `0` | `0.0002` |",
        "| `views.mixing` | `cutmix` `classmix` `cutout` `none` | `cutmix` |",
        "| `train.max_steps` | integer or null, at least `1` | `null` (`1000` without a `train` section) |",
        "| `data.palette` | list of [integer, integer, integer] or null | `null` |",
    ):
        assert row in text, row
    (row,) = re.findall(r"^\| `prototypes.sampling`.*$", text, re.M)
    assert "`balanced` with `method.preset=protoseg`." in row
    presets = preset_table()
    for name in METHOD_PRESETS:
        assert f"`method.preset={name}`" in presets
    for name in MODEL_PRESETS:
        assert f"`model.preset={name}`" in presets


def test_the_reference_has_every_setting_of_the_service():
    text = SERVICE
    for key, item in Settings.model_fields.items():
        (row,) = re.findall(rf"^\| `PROTOSEG_{key.upper()}` \|.*$", text, re.M)
        assert " ".join(item.description.split()).replace("``", "`") in row
    assert "| `PROTOSEG_MAX_BODY` | integer, at least `1` | `20MiB` |" in text


def test_tables_of_the_reference_have_four_columns():
    for text in (training_tables(), SERVICE):
        for row in re.findall(r"^\|.*$", text, re.M):
            assert len(re.findall(r"(?<!\\)\|", row)) == 5, row


def test_settings_say_what_presets_change_and_show_nested_ones():
    lines = describe_settings().splitlines()
    place = lines.index("  prototypes.weight=1.0")
    assert lines[place + 1] == "    * 0.5 with method.preset=protoseg"
    assert '  data.resize.mode="none"' in lines
    assert not any("{...}" in line for line in lines)


def test_every_setting_is_described():
    text = describe_settings()
    for section, field in Config.model_fields.items():
        assert f"{section}: " in text
        for key, item in field.annotation.model_fields.items():
            assert f"  {section}.{key}" in text
            assert item.description, f"{section}.{key} has no docstring"
