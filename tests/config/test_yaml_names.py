"""YAML 1.1 keys and names: accepted where they are certain, else the line and a cure that cures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from protoseg.config.load import load_config
from protoseg.config.sections import Config
from protoseg.errors import ConfigError

BASE = "data:\n  kind: files\n  labeled: l\n  val: v\n  unlabeled: u\n"


def load(folder: Path, rest: str) -> Config:
    path = folder / "my.yaml"
    path.write_text(BASE + rest, encoding="utf-8")
    return load_config(path)


def test_numbers_as_keys_and_words_as_names(tmp_path: Path) -> None:
    data = load(
        tmp_path, "  classes: [no, yes, 007, 2024-01-01, 1.50]\n  label_map: {0: no, 255: yes, -1: 2}\n"
    ).data
    assert data.classes == ["no", "yes", "007", "2024-01-01", "1.50"]
    assert data.label_map == {"0": "no", "255": "yes", "-1": 2}
    data = load(tmp_path, '  classes: [a, b]\n  label_map: {"0": a, "128,64,128": b, 7: ignore}\n').data
    assert data.label_map == {"0": "a", "128,64,128": "b", "7": "ignore"}


def test_a_mapping_that_counts_its_names_is_a_list(tmp_path: Path) -> None:
    assert load(tmp_path, "  classes: {0: sky, 1: no}\n").data.classes == ["sky", "no"]
    with pytest.raises(ConfigError, match=r"data\.classes: "):
        load(tmp_path, "  classes: {1: sky, 2: road}\n")


def test_no_as_nothing(tmp_path: Path) -> None:
    rest = "  classes: [a]\nmethod: {preset: supervised}\n"
    (tmp_path / "a.yaml").write_text(BASE.replace("unlabeled: u", "unlabeled: no") + rest)
    with pytest.raises(ConfigError, match=r'\(line 5\): "no", or write null for none'):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(BASE.replace("unlabeled: u", "unlabeled: null") + rest)
    assert load_config(tmp_path / "a.yaml").data.unlabeled is None


def test_a_byte_order_mark_is_harmless(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfrun: {name: x}\n")
    assert load_config(tmp_path / "a.yaml").run.name == "x"


@pytest.mark.parametrize(
    ("rest", "message", "cured"),
    [
        (
            "  classes: [a]\n  label_map: {0123: a}\n",
            r'line 7: .* key 0123, .* in quotes: "0123"',
            {"0123": "a"},
        ),
        ("  classes: [a]\n  label_map: {0x1: a}\n", r'line 7: .* key 0x1, .* in quotes: "0x1"', {"0x1": "a"}),
        ("  classes: [a]\n  label_map: {1: 010}\n", r'line 7: .* to 010, .* in quotes: "010"', {"1": "010"}),
    ],
)
def test_what_can_be_meant_in_two_ways_is_quoted(
    tmp_path: Path, rest: str, message: str, cured: dict[str, str]
) -> None:
    with pytest.raises(ConfigError, match=message) as info:
        load(tmp_path, rest)
    quoted = re.search(r'quotes: (".*?")', str(info.value))
    assert quoted is not None
    assert load(tmp_path, rest.replace(quoted[1].strip('"'), quoted[1])).data.label_map == cured


@pytest.mark.parametrize("key", ["128,64,128", "128,64,12"])
def test_colours_without_quotes_in_a_flow_mapping(tmp_path: Path, key: str) -> None:
    rest = f"  classes: [road]\n  label_map: {{{key}: road}}\n"
    with pytest.raises(ConfigError, match=r'line 7: .*put colours in quotes, as "128,64,128": road'):
        load(tmp_path, rest)
    assert load(tmp_path, rest.replace(key, f'"{key}"')).data.label_map == {key: "road"}


def test_text_that_yaml_takes_for_something_else_names_line_and_quotes(tmp_path: Path) -> None:
    rest = "  classes: [a]\nrun:\n  name: 1_16\n  dir: 2024-01-01\n"
    with pytest.raises(ConfigError) as info:
        load(tmp_path, rest)
    text = str(info.value)
    assert 'run.name: Input should be a valid string (got 116); put it in quotes (line 8): "1_16"' in text
    assert 'put it in quotes (line 9): "2024-01-01"' in text
    run = load(tmp_path, rest.replace("1_16", '"1_16"').replace("2024-01-01", '"2024-01-01"')).run
    assert (run.name, run.dir) == ("1_16", "2024-01-01")


def test_a_setting_of_several_kinds_is_reported_once_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as info:
        load(tmp_path, "  classes: [a, [b]]\n")
    assert str(info.value).splitlines()[0].endswith("1 problem(s)")
    assert "data.classes.1: Input should be a valid string (got ['b'])" in str(info.value)


def test_keys_given_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"line 8: data is given twice; the first is on line 1; join them"):
        load(tmp_path, "  classes: [a]\nrun: {name: x}\ndata: {cache: true}\n")
    assert load(tmp_path, "  classes: [a]\n  cache: true\nrun: {name: x}\n").data.cache


def test_names_in_an_override_need_quotes() -> None:
    with pytest.raises(ConfigError, match=r"as 'data\.classes=\[\"road\"\]'"):
        load_config(None, ["data.classes=[road]"])
    assert load_config(None, ['data.classes=["road"]']).data.classes == ["road"]
