"""Sets of shards: what folders give, tars and parquet give, to the bit; and what is wrong is said."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shard_sets import CLASSES, COUNTS, WRITERS, encoded, pictures, write_shard, write_shards
from tiny import PROJECT_ROOT

from protoseg.check.inspect import inspect
from protoseg.config.data import DataConfig, ViewConfig
from protoseg.config.load import parse_config
from protoseg.data.classes import read_classes
from protoseg.data.lists import portable_root, read_entries, scan_entries
from protoseg.data.shards import index
from protoseg.data.sources import CachedSource, Source, open_source
from protoseg.data.storage import expand_braces, find_blobs
from protoseg.data.stream import StreamSampler, make_stream
from protoseg.errors import DataError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path / "cache"))
    index.open_shards.cache_clear()
    return tmp_path / "cache"


def config(root: Path | str, **keys: Any) -> DataConfig:
    return DataConfig(**{"kind": "files", "root": str(root), "classes": CLASSES, **keys})


def sources(data: DataConfig) -> dict[str, Source]:
    classes = read_classes(data)
    return {split: open_source(data, split, classes) for split in ("labeled", "val", "unlabeled")}


@pytest.fixture
def shards(tmp_path: Path) -> DataConfig:
    return config(tmp_path / "set", **write_shards(tmp_path / "set"))


def batches(data: DataConfig, stream: str, workers: int = 0, **place: int) -> list[dict[str, torch.Tensor]]:
    source = CachedSource(sources(data)[stream], data)
    settings = data.model_copy(update={"num_workers": workers})
    where = {"start": 0, "stop": 4, **place}
    sampler = StreamSampler(len(source), 2, seed=3, stream=stream, **where)  # type: ignore[arg-type]
    return list(make_stream(source, sampler, data=settings, views=ViewConfig(crop=(32, 32)), mean=[0.5] * 3))


def same(one: list[dict[str, torch.Tensor]], two: list[dict[str, torch.Tensor]]) -> bool:
    return len(one) == len(two) and all(
        torch.equal(value, b[key]) for a, b in zip(one, two, strict=True) for key, value in a.items()
    )


def test_every_kind_of_set_gives_the_same_images_masks_and_batches(tmp_path: Path) -> None:
    sets = {kind: config(tmp_path / kind, **write(tmp_path / kind)) for kind, write in WRITERS.items()}
    opened = {kind: sources(data) for kind, data in sets.items()}
    for split, count in COUNTS.items():
        folder = opened["folders"][split]
        assert len(folder) == count
        for kind in ("tar", "parquet"):
            source = opened[kind][split]
            assert len(source) == count
            for i in range(count):
                assert np.array_equal(source.image(i), folder.image(i))
                assert source.digest(i) == folder.digest(i), "the same bytes"
                assert (source.labels(i) is None) == (split == "unlabeled")
                if split != "unlabeled":
                    assert np.array_equal(source.mask(i), folder.mask(i))
    assert opened["tar"]["labeled"].sha256 == opened["folders"]["labeled"].sha256
    for stream in ("labeled", "unlabeled"):
        expected = batches(sets["folders"], stream)
        assert same(batches(sets["tar"], stream), expected)
        assert same(batches(sets["parquet"], stream), expected)


def test_shares_of_processes_and_a_resumed_stream_are_those_of_one_run(shards: DataConfig) -> None:
    straight = batches(shards, "unlabeled", stop=6)
    assert same(batches(shards, "unlabeled", start=2, stop=6), straight[2:]), "resumed"
    both = [batches(shards, "unlabeled", stop=3, rank=rank, world=2) for rank in (0, 1)]
    assert same([batch for pair in zip(*both, strict=True) for batch in pair], straight)
    assert same(batches(shards, "unlabeled", workers=2, stop=6), straight), "loader processes"


def test_entries_are_made_on_demand_and_travel_to_other_processes(shards: DataConfig) -> None:
    entries = read_entries(shards, "labeled").entries
    assert str(entries[1].image) == f"{shards.root}/labeled-000.tar/labeled0001.jpg"
    assert str(entries[4].mask) == f"{shards.root}/labeled-001.tar/labeled0004.mask.png"
    assert [e.image.stem for e in entries[3:]] == ["labeled0003", "labeled0004"]
    assert entries[-1] == entries[4]
    with pytest.raises(IndexError):
        entries[5]
    again = pickle.loads(pickle.dumps(entries[2].image))
    assert again.read_bytes() == pictures("labeled")[2][1]


def test_roles_by_lists_of_keys(shards: DataConfig, tmp_path: Path) -> None:
    root = Path(shards.root)
    (root / "some.txt").write_text(
        "# two of them\nlabeled0003\nlabeled-000.tar/labeled0001\nlabeled0000.jpg\n"
    )
    (root / "val.txt").write_text("val0001\n")
    lists = {"labeled": "some.txt", "val": "val.txt"}
    for data in (
        config(root, **lists, unlabeled="*.tar"),
        config(f"file://{root}/*.tar", **lists, unlabeled="{labeled,unlabeled,val}-*.tar"),
    ):
        found = {split: scan_entries(data, split) for split in COUNTS}  # type: ignore[arg-type]
        assert all(problems == [] for _, problems in found.values())
        assert [e.image.stem for e in found["labeled"][0].entries] == [
            "labeled0003",
            "labeled0001",
            "labeled0000",
        ]
        # all others, labelled or not: no image is in two splits
        names = [e.image.stem for e in found["unlabeled"][0].entries]
        assert len(names) == len(set(names)) == 17 - 4
        assert not {"labeled0003", "val0001"} & set(names)
        assert (
            "4 image(s) that are labelled or for validation are left out" in found["unlabeled"][0].warnings[0]
        )
        assert all(e.mask is None for e in found["unlabeled"][0].entries)


def test_a_shard_in_both_roles_is_divided_by_its_masks(tmp_path: Path) -> None:
    mixed = [*pictures("labeled")[:2], *pictures("unlabeled")[:3]]
    write_shard(tmp_path / "train.tar", mixed)
    write_shard(tmp_path / "val.tar", pictures("val"))
    data = config(tmp_path, labeled="train.tar", unlabeled="train.tar", val="val.tar")
    assert len(read_entries(data, "labeled").entries) == 2
    assert [e.image.stem for e in read_entries(data, "unlabeled").entries] == [k for k, _, _ in mixed[2:]]
    with pytest.raises(DataError, match=r"unlabeled0000\.jpg has no mask in its shard; name the keys"):
        read_entries(config(tmp_path, labeled="train.tar", val="val.tar"), "labeled")


@pytest.mark.parametrize("ending", ["png", "seg.png", "mask.png"])
def test_usual_names_of_masks(tmp_path: Path, ending: str) -> None:
    write_shard(tmp_path / "a.tar", pictures("labeled"), ending)
    entries = read_entries(config(tmp_path, labeled="a.tar", val="a.tar"), "labeled").entries
    assert [e.mask.name for e in entries][:1] == [f"labeled0000.{ending}"]  # type: ignore[union-attr]


def tar(path: Path, names: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as file:
        for name, data in names.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


GREY = encoded(np.zeros((4, 4), np.uint8), "PNG")


def test_masks_beside_images_and_settings_that_name_them(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"d/x.png": GREY, "d/x_mask.png": GREY, "d/y.png": GREY})
    data = config(tmp_path, labeled="a.tar", val="a.tar", unlabeled="a.tar")
    (entry,) = read_entries(data, "labeled").entries
    assert (entry.image.name, entry.mask and entry.mask.name) == ("x.png", "x.mask.png")
    tar(tmp_path / "a.tar", {"x.rgb.png": GREY, "x.depth.png": GREY, "x.cls.png": GREY})
    (entry,) = read_entries(
        data.model_copy(update={"image_suffix": ".depth", "mask_suffix": ".cls.png"}), "val"
    ).entries
    assert (entry.image.name, entry.mask and entry.mask.name) == ("x.depth.png", "x.cls.png")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"images/a.jpg": GREY, "masks/a.png": GREY}, r"masks are in a folder of their own \(masks/a\.png\)"),
        ({"a.jpg": GREY, "a.webp": GREY}, r"a has \.jpg, \.webp, and one is wanted; set data\.image_suffix"),
        ({"README": GREY}, "holds no file with a key and an extension"),
    ],
)
def test_tars_that_are_no_webdataset(tmp_path: Path, names: dict[str, bytes], message: str) -> None:
    tar(tmp_path / "a.tar", names)
    with pytest.raises(DataError, match=message):
        read_entries(config(tmp_path, labeled="a.tar", val="a.tar"), "val")


def test_a_mask_that_lost_its_image_is_no_image(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"a.jpg": GREY, "a.png": GREY, "b.png": GREY})
    found = read_entries(config(tmp_path, labeled="a.tar", val="a.tar"), "val")
    assert len(found.entries) == 1
    assert "1 file(s) of the masks' kind without an image (.png) are left out, as b.png" in found.warnings


def test_damaged_missing_and_packed_shards(shards: DataConfig, tmp_path: Path) -> None:
    root = Path(shards.root)
    whole = (root / "val-000.tar").read_bytes()
    read_entries(shards, "val")
    for size, message in ((700, "damaged or cut off"), (2000, "damaged or cut off"), (0, "is empty")):
        (root / "val-000.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=message):
            read_entries(shards, "val")
    # cut off where a file ends
    (root / "val-000.tar").write_bytes(whole.rstrip(b"\0") + b"\0" * (-len(whole.rstrip(b"\0")) % 512))
    with pytest.raises(DataError, match="has no end mark"):
        read_entries(shards, "val")
    tar(root / "val-000.tar", {"a.jpg": GREY, "b.jpg": GREY})
    with tarfile.open(root / "val-000.tar", "a") as file:
        file.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DataError, match=r"a\.jpg twice; keys must be unique"):
        read_entries(shards, "val")
    with pytest.raises(DataError, match=r"labeled-002\.tar and 1 more not found, of 4 that"):
        read_entries(shards.model_copy(update={"labeled": "labeled-{000..003}.tar"}), "labeled")
    with pytest.raises(DataError, match=r"x-\*\.tar not found"):
        read_entries(shards.model_copy(update={"labeled": "x-*.tar"}), "labeled")
    with pytest.raises(DataError, match=r"is packed.*unpack it"):
        read_entries(shards.model_copy(update={"labeled": "x.tar.gz"}), "labeled")


def test_a_shard_that_shrinks_while_it_is_used(shards: DataConfig) -> None:
    source = sources(shards)["val"]
    path = Path(shards.root) / "val-000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"val-000\.tar has changed since it was opened"):
        source.image(0)


def test_keys_that_are_not_there_or_twice(shards: DataConfig) -> None:
    root = Path(shards.root)
    write_shard(root / "again-000.tar", pictures("labeled")[:1])
    (root / "keys.txt").write_text("labeled0001\nnowhere\nlabeled0000\nagain-000.tar/labeled0000\n")
    found, problems = scan_entries(shards.model_copy(update={"labeled": "keys.txt"}), "labeled")
    assert len(found.entries) == 2
    assert len(problems) == 2
    assert "keys.txt, line 2: no image of the shards has the key nowhere" in problems[0]
    assert "line 3: key labeled0000 is in" in problems[1]
    assert "write again-000.tar/labeled0000" in problems[1]


def test_parquet_columns(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    _, image, mask = pictures("labeled")[0]
    columns = {"pixels": [image, None, image], "classes": [mask, mask, None]}
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    data = config(tmp_path, labeled="a.parquet", val="a.parquet", unlabeled="a.parquet")
    with pytest.raises(DataError, match=r"picture columns \['pixels', 'classes'\].*data\.image_column"):
        read_entries(data, "labeled")
    data = data.model_copy(update={"image_column": "pixels", "mask_column": "classes"})
    (entry,) = read_entries(data, "labeled").entries
    assert entry.image.read_bytes() == image
    assert entry.mask is not None
    assert entry.mask.read_bytes() == mask
    assert [e.image.key for e in read_entries(data, "unlabeled").entries] == ["a/000002"]  # type: ignore[union-attr]
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"a\.parquet is no readable parquet file"):
        read_entries(data, "labeled")
    parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no picture column nothing; set data"):
        read_entries(data.model_copy(update={"mask_column": "nothing"}), "labeled")


def test_tables_are_kept_until_a_shard_changes(
    shards: DataConfig, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [str(e.image) for e in read_entries(shards, "unlabeled").entries]
    tables = sorted((cache / "shards").glob("*.npz"))
    assert len(tables) == 6
    index.open_shards.cache_clear()
    monkeypatch.setattr(index, "scan_tar", lambda *_: pytest.fail("looked through again"))
    assert [str(e.image) for e in read_entries(shards, "unlabeled").entries] == before
    monkeypatch.undo()
    monkeypatch.setenv("PROTOSEG_CACHE", str(cache))
    # a damaged table, and a changed shard
    for table in tables:
        table.write_bytes(table.read_bytes()[:50])
    index.open_shards.cache_clear()
    write_shard(Path(shards.root) / "unlabeled-001.tar", pictures("unlabeled")[4:6])
    assert len(read_entries(shards, "unlabeled").entries) == 4 + 2 + 1


def test_a_cache_that_cannot_be_written_costs_time_only(
    shards: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PROTOSEG_CACHE", str(tmp_path / "file"))
    assert len(read_entries(shards, "labeled").entries) == 5
    assert "cannot be written" in caplog.text


def test_protocols_without_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DataError, match="pip install s3fs"):
        find_blobs("s3://bucket/a-{0..1}.tar")
    with pytest.raises(DataError, match="Protocol not known: nowhere"):
        find_blobs("nowhere://bucket/a.tar")


def test_urls_of_any_file_system(shards: DataConfig) -> None:
    """fsspec's own memory file system stands for a store: the same calls, listings and ranges."""
    import fsspec

    store = fsspec.filesystem("memory")
    for path in Path(shards.root).iterdir():
        store.pipe(f"/bucket/set/{path.name}", path.read_bytes())
    store.pipe("/bucket/set/names.txt", "a\nb\nc\n".encode("utf-16"))
    store.pipe("/bucket/set/keys.txt", b"val0001\n")
    far = shards.model_copy(update={"root": "memory://bucket/set", "classes": "names.txt"})
    assert portable_root(far) == far.root
    assert same(batches(far, "unlabeled"), batches(shards, "unlabeled"))
    near = sources(shards)["labeled"]
    for i, source in enumerate([sources(far)["labeled"]] * 2):
        assert np.array_equal(source.mask(i), near.mask(i))
    listed = far.model_copy(update={"val": "keys.txt", "labeled": "memory://bucket/set/labeled-*.tar"})
    assert [e.image.stem for e in read_entries(listed, "val").entries] == ["val0001"]
    with pytest.raises(DataError, match=r"data\.val=no\.txt: memory://bucket/set/no\.txt not found"):
        read_entries(far.model_copy(update={"val": "no.txt"}), "val")


def test_check_knows_shards(shards: DataConfig) -> None:
    report = inspect(parse_config({"data": shards.model_dump()}), quick=False)
    assert report.ok, report.problem_lines()
    assert report.facts["splits"]["labeled"]["images"] == 5
    assert sum(report.facts["image_sizes"].values()) == 17
    assert not {"overlap", "duplicate"} & set(report.problems)
    root = Path(shards.root)
    write_shard(root / "unlabeled-002.tar", [("copy", pictures("val")[0][1], None)])
    report = inspect(parse_config({"data": shards.model_dump()}), quick=False)
    assert any("val0000.jpg" in text for text in report.problems["overlap"].examples), "the same bytes"


def test_a_folder_of_images_with_a_tar_beside_stays_one(tmp_path: Path) -> None:
    roles = WRITERS["folders"](tmp_path)
    (tmp_path / "backup.tar").write_bytes(b"")
    assert len(read_entries(config(tmp_path, **roles), "labeled").entries) == 5
    with pytest.raises(DataError, match=r"is a pair of folders, data\.root=.* holds shards"):
        read_entries(config(tmp_path, **roles | {"val": "backup.tar"}), "labeled")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}-{1..2}", ["x-1", "x-2", "y-1", "y-2"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["a-{}.tar", "a-{x}.tar", "a-{0..9999999}.tar"])
def test_braces_that_mean_nothing(pattern: str) -> None:
    with pytest.raises(DataError, match="braces hold a range"):
        expand_braces(pattern)


def test_processes_that_start_together_look_through_a_shard_once(shards: DataConfig, cache: Path) -> None:
    code = (
        "import sys; from protoseg.data.shards import index; scan = index.scan_tar\n"
        "index.scan_tar = lambda place, *more: (print(place), scan(place, *more))[1]\n"
        "from protoseg.data.storage import find_blobs\n"
        "index.open_shards(tuple(find_blobs(sys.argv[1])), index.Rules())"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, f"{shards.root}/*.tar"], cwd=PROJECT_ROOT,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]  # fmt: skip
    places = [line for run in runs for line in run.communicate()[0].splitlines()]
    assert len(places) == len(set(places)) == 6
