"""Caches of engines."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from export.engines.cache import Cache, default_cache, locked
from protoseg.errors import ExportError


def test_cache_keeps_whole_files_by_all_facts(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "engines", ".plan")
    facts = {"onnx": "a", "version": "1", "gpu": None}
    assert cache.read(facts) is None
    cache.write(facts, b"plan")
    assert cache.read(facts) == b"plan"
    for change in ({"onnx": "b"}, {"version": "2"}, {"gpu": {"name": "x"}}):
        assert cache.read({**facts, **change}) is None
    cache.path(facts).write_bytes(b"plam")
    assert cache.read(facts) is None
    cache.write(facts, b"plan")
    cache.path(facts).with_name(cache.path(facts).name + ".json").write_text("{")
    assert cache.read(facts) is None


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("PROTOSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "protoseg"


def _hold(path: str, ready: Any, release: Any) -> None:
    with locked(Path(path)):
        ready.set()
        release.wait(30)


def test_builds_exclude_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "build"), ready, release))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(ExportError, match="another build"), locked(tmp_path / "build", timeout=0.1):
            pass
    finally:
        release.set()
        process.join(30)
    with locked(tmp_path / "build", timeout=0.1):
        pass
