"""Which images become which shard, and that a shard is whole and made once."""

import io
import json
import tarfile
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image
from tiny import photo

from protoseg.api.inputs import Origin
from protoseg.api.result import ModelInfo, Result
from protoseg.data.find import FoundImage
from protoseg.distributed.plan import (
    agree,
    find_items,
    keys_of,
    make_plan,
    read_done,
    shard_file,
    source_of,
    write_manifest,
)
from protoseg.distributed.work import make_shard
from protoseg.errors import DataError, UserError
from protoseg.manifest import ClassInfo

MODEL = {"name": "fake", "version": "1", "head": "linear", "classes": ["dark", "bright"]}
INFO = ModelInfo("fake", "1", "linear", (ClassInfo(name="dark", color=(0, 0, 0)),
                                         ClassInfo(name="bright", color=(200, 0, 0))))  # fmt: skip


class Threshold:
    """Labels what is bright; counts what it was asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, item, *, scores):
        self.calls += 1
        try:
            data = io.BytesIO(item) if isinstance(item, bytes) else item.path
            image = np.asarray(Image.open(data).convert("RGB"))
        except OSError as error:
            raise DataError(f"{source_of(item)}: {error}") from error
        labels = (image.mean(2) > 127).astype(np.uint8)
        return Result(labels, None, None, INFO, Origin("x", "x"), lambda: image)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(5):
        Image.fromarray(photo(number)).save(folder / ("sub" if number % 2 else ".") / f"p.{number}.png")
    return folder


def plan_of(images, out, size=2):
    items = find_items([str(images)], out)
    keys = keys_of(items)
    return items, keys, make_plan(items, keys, size, MODEL)


def test_every_image_is_once_in_a_tar_that_samples_can_be_read_from(images, tmp_path):
    out = tmp_path / "out"
    items, keys, plan = plan_of(images, out)
    assert keys == ["p_0", "p_2", "p_4", "sub/p_1", "sub/p_3"]
    assert plan.num_shards == 3
    agree(plan, out)
    model = Threshold()
    for shard in range(3):
        part = plan.part(shard)
        make_shard(model, items[part], keys[part], out, shard)
    manifest = write_manifest(plan, out)
    assert [told["images"] for told in manifest["shards"]] == [2, 2, 1]
    found = {}
    for shard in range(3):
        with tarfile.open(shard_file(out, shard)) as tar:
            for member in tar:
                found[member.name] = tar.extractfile(member).read()
    assert sorted(found) == sorted(f"{key}{suffix}" for key in keys for suffix in (".json", ".png"))
    mask = np.asarray(Image.open(io.BytesIO(found["sub/p_3.png"])))
    expected = (photo(3).mean(2) > 127).astype(np.uint8)
    assert np.array_equal(mask, expected)
    told = json.loads(found["sub/p_3.json"])
    assert told["image"] == str(images / "sub" / "p.3.png")
    assert told["shares"].get("bright", 0) == pytest.approx(expected.mean(), abs=1e-6)

    # a finished shard is not made again; the tars can themselves be segmented
    calls = model.calls
    make_shard(model, items[:2], keys[:2], out, 0)
    assert model.calls == calls


def test_a_damaged_image_is_told_and_the_others_are_done(images, tmp_path):
    (images / "p.2.png").write_bytes(b"nothing")
    out = tmp_path / "out"
    items, keys, plan = plan_of(images, out, size=5)
    agree(plan, out)
    told = make_shard(Threshold(), items, keys, out, 0)
    assert told["images"] == 4
    assert [item["image"] for item in told["failed"]] == [str(images / "p.2.png")]
    assert write_manifest(plan, out)["images"] == 5


def test_a_shard_that_was_cut_off_is_made_again(images, tmp_path):
    out = tmp_path / "out"
    items, keys, plan = plan_of(images, out, size=5)
    agree(plan, out)
    make_shard(Threshold(), items, keys, out, 0)
    whole = shard_file(out, 0).read_bytes()
    shard_file(out, 0).write_bytes(whole[:-512])
    assert read_done(out, 0) is None
    with pytest.raises(DataError, match="1 of 1 shards are not there"):
        write_manifest(plan, out)
    make_shard(Threshold(), items, keys, out, 0)
    assert shard_file(out, 0).read_bytes() == whole


@pytest.mark.parametrize(("change", "told"), [("size", "shard size"), ("image", "images")])
def test_a_folder_of_another_call_is_refused(images, tmp_path, change, told):
    out = tmp_path / "out"
    agree(plan_of(images, out)[2], out)
    agree(plan_of(images, out)[2], out)
    if change == "image":
        (images / "p.0.png").unlink()
    with pytest.raises(UserError, match=f"holds masks of a call with other .*{told}"):
        agree(plan_of(images, out, size=3 if change == "size" else 2)[2], out)


def test_two_images_of_one_name_are_refused(tmp_path):
    items = [FoundImage(n, Path(f"/{n}/a.png"), PurePath("a.png")) for n in ("x", "y")]
    with pytest.raises(UserError, match=r"/x/a.png and /y/a.png would both be a; give the folder above"):
        keys_of(items)


def test_images_within_tars_are_found(images, tmp_path):
    shard = tmp_path / "set-000.tar"
    with tarfile.open(shard, "w") as tar:
        for number in range(3):
            data = io.BytesIO()
            Image.fromarray(photo(number)).save(data, "PNG")
            entry = tarfile.TarInfo(f"k{number}.png")
            entry.size = len(data.getvalue())
            data.seek(0)
            tar.addfile(entry, data)
    out = tmp_path / "out"
    items = find_items([str(tmp_path / "set-*.tar")], out)
    keys = keys_of(items)
    assert keys == ["k0", "k1", "k2"]
    plan = make_plan(items, keys, 3, MODEL)
    agree(plan, out)
    assert make_shard(Threshold(), items, keys, out, 0)["images"] == 3
