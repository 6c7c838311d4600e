"""Files and folders appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from protoseg.files import folder_whole, write_bytes_whole


def test_a_folder_takes_its_place_only_when_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "manifest.json").write_text("old")

    def fail() -> None:
        with folder_whole(target) as partial:
            (partial / "manifest.json").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "manifest.json").read_text() == "old"
    with folder_whole(target) as partial:
        (partial / "manifest.json").write_text("new")
    assert (target / "manifest.json").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_file_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "manifest.json"
    file.write_bytes(b"old")

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes_whole(file, b"new")
    assert file.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]
