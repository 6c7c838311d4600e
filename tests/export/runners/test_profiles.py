"""Profiles are checked before the minutes of a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.runners.profiles import check_profiles, default_profile, parse_profile
from protoseg.errors import ExportError
from protoseg.manifest import Manifest, read_manifest


def static(manifest: Manifest, shape: tuple[int, int, int]) -> Manifest:
    graph = manifest.graph.model_copy(update={"static_shape": shape})
    return manifest.model_copy(update={"graph": graph})


def test_profiles_are_parsed() -> None:
    profile = parse_profile("wide:1x32x64:2x48x96:4x64x128")
    assert (profile.min, profile.opt, profile.max) == ((1, 32, 64), (2, 48, 96), (4, 64, 128))
    assert str(profile) == "wide:1x32x64:2x48x96:4x64x128"
    assert parse_profile("one:1x32x64").fixed
    for text in ("default", "a:1x2", "a:1x2x3:4x5x6", ":1x2x3", "a:1x2x3:1x2x3:1x2x3:1x2x3", "a:1xHx3"):
        with pytest.raises(ExportError, match="expected NAME:MIN:OPT:MAX"):
            parse_profile(text)


def test_profiles_are_checked_before_building(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    default = check_profiles([], manifest)
    assert default == [default_profile(manifest)]
    assert default[0].contains((1, 64, 96))
    for text in ("a:2x64x64:1x64x64:4x64x64", "a:1x64x64:1x128x64:1x96x64", "a:0x64x64:1x64x64:1x64x64"):
        with pytest.raises(ExportError, match="1 <= min <= opt <= max"):
            check_profiles([parse_profile(text)], manifest)
    with pytest.raises(ExportError, match="names must differ"):
        check_profiles([parse_profile("a:1x64x64"), parse_profile("a:1x32x32")], manifest)
    fixed = static(manifest, (1, 64, 96))
    assert check_profiles([], fixed) == []
    assert check_profiles([parse_profile("a:1x64x96")], fixed) == []
    with pytest.raises(ExportError, match="fixed shape 1x64x96"):
        check_profiles([parse_profile("a:1x64x64")], fixed)
