"""Shards behind a local S3 server: ``pip install s3fs "moto[server]"``, 80 MB, not in the dev extra."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_sets import CLASSES, COUNTS, write_parquet, write_shards

from protoseg.config.data import DataConfig, ViewConfig
from protoseg.data.classes import read_classes
from protoseg.data.lists import read_entries
from protoseg.data.shards import index
from protoseg.data.sources import CachedSource, open_source
from protoseg.data.storage import find_blobs
from protoseg.data.stream import StreamSampler, make_stream
from protoseg.errors import DataError

pytestmark = pytest.mark.slow
REASON = 'needs pip install s3fs "moto[server]"'


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A server with an empty bucket ``set``, and the settings that name it."""
    pytest.importorskip("s3fs", reason=REASON)
    server = pytest.importorskip("moto.server", reason=REASON).ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "PROTOSEG_CACHE": str(tmp_path / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import fsspec

    system = fsspec.filesystem("s3")
    system.makedirs("set", exist_ok=True)
    index.open_shards.cache_clear()
    yield system
    system.rm("set/part", recursive=True)
    server.stop()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def batches(data: DataConfig, stream: Any, **where: int) -> list[dict[str, torch.Tensor]]:
    source = CachedSource(open_source(data, stream, read_classes(data)), data)
    sampler = StreamSampler(len(source), 2, seed=3, stream=stream, **{"start": 0, "stop": 4, **where})
    return list(make_stream(source, sampler, data=data, views=ViewConfig(crop=(32, 32)), mean=[0.5] * 3))


@pytest.mark.parametrize("write", [write_shards, write_parquet])
def test_a_store_gives_what_the_disk_gives(store: Any, tmp_path: Path, write: Any) -> None:
    near = DataConfig(kind="files", root=str(tmp_path / "near"), classes=CLASSES, **write(tmp_path / "near"))
    store.put(f"{tmp_path}/near/*", "set/part/")
    far = near.model_copy(update={"root": "s3://set/part"})
    for stream in ("labeled", "unlabeled"):
        expected = batches(near, stream)
        for workers in (0, 2):
            found = batches(far.model_copy(update={"num_workers": workers}), stream)
            for one, two in zip(found, expected, strict=True):
                assert all(torch.equal(value, two[key]) for key, value in one.items())
    again = far.model_copy(update={"num_workers": 2})
    assert torch.equal(batches(again, "labeled", start=3)[0]["image"], batches(near, "labeled")[3]["image"])


def test_what_goes_wrong_with_a_store(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "near")
    store.put(f"{tmp_path}/near/*", "set/part/")
    assert len(find_blobs("s3://set/part/*.tar")) == sum(-(-n // 4) for n in COUNTS.values())
    with pytest.raises(DataError, match=r"labeled-002\.tar not found, of 3 that"):
        find_blobs("s3://set/part/labeled-{000..002}.tar")
    with pytest.raises(DataError, match=r"s3://nowhere/.*not found"):
        find_blobs("s3://nowhere/*.tar")
    # what changes is looked through again: the mark of an object is its ETag
    far = DataConfig(
        kind="files", root="s3://set/part", classes=CLASSES, labeled="labeled-*.tar", val="val-*.tar"
    )
    assert len(read_entries(far, "val").entries) == 3
    store.put(f"{tmp_path}/near/labeled-000.tar", "set/part/val-000.tar")
    assert len(read_entries(far, "val").entries) == 4
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    sys.modules["fsspec"].get_filesystem_class("s3").clear_instance_cache()
    with pytest.raises(DataError, match=r"access to s3://set/part.* was denied.*FSSPEC_S3_ANON=true"):
        find_blobs("s3://set/part/val-000.tar")
    # the cure
    monkeypatch.setitem(sys.modules["fsspec"].config.conf, "s3", {"anon": True})
    sys.modules["fsspec"].get_filesystem_class("s3").clear_instance_cache()
    assert len(find_blobs("s3://set/part/*.tar")) == 6
