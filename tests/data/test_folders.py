"""What a folder holds: all of it is read or named, masks are no images, and each cure cures."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from file_lists import files_config as config
from file_lists import touch

from protoseg.data import names
from protoseg.data.folders import scan_folder
from protoseg.data.lists import EntryList, read_entries, scan_entries
from protoseg.errors import DataError


def unlabeled(root: Path, **keys: object) -> tuple[list[str], str]:
    listed = read_entries(config(root, unlabeled="u", **keys), "unlabeled")
    images = [entry.image.relative_to(root / "u").as_posix() for entry in listed.entries]
    return images, "\n".join(listed.warnings)


def pairs(root: Path, listed: EntryList) -> list[tuple[str, str]]:
    return [
        (e.image.relative_to(root).as_posix(), e.mask.relative_to(root).as_posix() if e.mask else "")
        for e in listed.entries
    ]


def test_everything_left_out_is_named_once(tmp_path: Path) -> None:
    touch(tmp_path / "u", "a.png", "b.JFIF", "c.jpe", "d.gif", "e.dcm", "f.nii.gz", "g.jpg.part", "README")
    touch(tmp_path / "u", ".h.png", ".git/i.png", "sub/j.gif")
    (tmp_path / "u" / "k.png").symlink_to(tmp_path / "gone.png")
    images, warning = unlabeled(tmp_path)
    assert images == ["a.png", "b.JFIF", "c.jpe"]
    assert warning.count("\n") == 0
    assert "9 file(s) below" in warning
    for part in (
        "2 .gif, as d.gif", "2 hidden, as .git", "1 .dcm, as e.dcm", "1 .gz, as f.nii.gz", "1 .part, as",
        "1 without a suffix, as README", "1 link(s) to nothing, as k.png",
    ):  # fmt: skip
        assert part in warning


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    touch(tmp_path, "disk/x/a.png", "u/own/b.png")
    (tmp_path / "u" / "far").symlink_to(tmp_path / "disk")
    (tmp_path / "u" / "again").symlink_to(tmp_path / "u" / "own")
    (tmp_path / "disk" / "round").symlink_to(tmp_path / "disk")
    (tmp_path / "u" / "own" / "up").symlink_to(tmp_path)
    images, warning = unlabeled(tmp_path)
    assert images == ["far/x/a.png", "own/b.png"]
    assert "3 link(s) to a folder that is read already or lies above" in warning


def test_heic_is_named_with_a_cure_that_makes_it_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "u/a.heic", "u/b.png")
    for name in ("pi_heif", "pillow_heif"):  # as if they were not installed
        monkeypatch.setitem(sys.modules, name, None)
    fresh = importlib.reload(names)
    assert ".heic" not in fresh.IMAGE_SUFFIXES
    left = scan_folder(tmp_path / "u", fresh.IMAGE_SUFFIXES).left
    assert "1 .heic (pip install pi-heif), as a.heic" in left.describe(tmp_path / "u")
    opened = []
    monkeypatch.setitem(
        sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=lambda: opened.append(1))
    )
    fresh = importlib.reload(names)
    assert opened
    assert {".heic", ".heif"} <= set(fresh.IMAGE_SUFFIXES)
    monkeypatch.undo()
    importlib.reload(names)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """Images and masks in one folder, three pairs of six in the list."""
    touch(tmp_path, *(f"u/im{n}{end}" for n in range(6) for end in (".jpg", "_mask.png")))
    (tmp_path / "l.txt").write_text("".join(f"u/im{n}.jpg u/im{n}_mask.png\n" for n in range(3)))
    return tmp_path


def test_masks_beside_images_are_no_images(beside: Path) -> None:
    images, warning = unlabeled(beside)
    assert images == [f"im{n}.jpg" for n in range(6)]
    assert "3 mask(s) of labelled images, as im0_mask.png" in warning
    assert "3 mask(s) beside their images (ending _mask), as im3_mask.png" in warning


def test_an_ending_is_learnt_from_the_labelled_list(tmp_path: Path) -> None:
    touch(tmp_path, *(f"u/im{n}{end}" for n in range(3) for end in (".png", "-P.png")))
    (tmp_path / "l.txt").write_text("u/im0.png u/im0-P.png\n")
    assert unlabeled(tmp_path)[0] == ["im0.png", "im1.png", "im2.png"]


def test_a_folder_of_masks_below_the_unlabelled_images(tmp_path: Path) -> None:
    touch(tmp_path, *(f"u/{kind}/im{n}.png" for n in range(3) for kind in ("images", "masks")))
    (tmp_path / "l.txt").write_text("u/images/im0.png u/masks/im0.png\n")
    images, warning = unlabeled(tmp_path)
    assert images == [f"images/im{n}.png" for n in range(3)]
    assert "2 in a folder of masks, as masks/im1.png" in warning


def test_a_list_of_unlabelled_images_that_names_masks(beside: Path) -> None:
    (beside / "u.txt").write_text("u/im3.jpg\nu/im0_mask.png\n")
    listed = read_entries(config(beside, unlabeled="u.txt"), "unlabeled")
    assert [entry.image.name for entry in listed.entries] == ["im3.jpg"]
    assert "1 line(s) name masks of labelled images, as" in listed.warnings[0]


def test_pairs_in_one_folder_by_a_usual_ending(beside: Path) -> None:
    listed = read_entries(config(beside, labeled={"images": "u", "masks": "u"}), "labeled")
    assert pairs(beside, listed) == [(f"u/im{n}.jpg", f"u/im{n}_mask.png") for n in range(6)]
    assert listed.family == "folder pair, masks end in _mask"
    assert listed.warnings == ()
    (beside / "l.txt").write_text("u/im0.jpg\n")
    assert pairs(beside, read_entries(config(beside), "labeled")) == [("u/im0.jpg", "u/im0_mask.png")]


def test_pairs_of_one_stem_in_one_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"u/im{n}{end}" for n in range(3) for end in (".jpg", ".png")), "u/alone.png")
    keys = {"labeled": {"images": "u", "masks": "u"}}
    listed, problems = scan_entries(config(tmp_path, **keys), "labeled")
    assert pairs(tmp_path, listed) == [(f"u/im{n}.jpg", f"u/im{n}.png") for n in range(3)]
    assert "alone.png has no mask" in problems[0]
    (tmp_path / "u" / "alone.png").unlink()
    assert unlabeled(tmp_path, **keys)[0] == ["im0.jpg", "im1.jpg", "im2.jpg"]
    (tmp_path / "l.txt").write_text("u/im0.jpg\n")
    assert pairs(tmp_path, read_entries(config(tmp_path), "labeled")) == [("u/im0.jpg", "u/im0.png")]


@pytest.mark.parametrize(
    ("files", "keys"),
    [
        (("im0.tif", "im0-P.png"), {"mask_suffix": "-P"}),
        (("im0.tif", "im0-P.png"), {"mask_suffix": "-P.png"}),
        (("im0.tif", "im0.png"), {"image_suffix": ".tif", "mask_suffix": ".png"}),
        (("im0_rgb.png", "im0_lab.png"), {"image_suffix": "_rgb", "mask_suffix": "_lab"}),
        (("im0_rgb.png", "im0.png"), {"image_suffix": "_rgb"}),
        (("im0_rgb.png", "im0_mask.png"), {"image_suffix": "_rgb"}),
    ],
)
@pytest.mark.parametrize("folders", [("u", "u"), ("i", "m"), ("u", "u/m"), ("u/i", "u")])
def test_suffixes_that_are_set(
    tmp_path: Path, files: tuple[str, str], keys: dict[str, str], folders: tuple[str, str]
) -> None:
    expected = (f"{folders[0]}/{files[0]}", f"{folders[1]}/{files[1]}")
    touch(tmp_path, *expected)
    pair = {"images": folders[0], "masks": folders[1]}
    listed, problems = scan_entries(config(tmp_path, labeled=pair, **keys), "labeled")
    assert (pairs(tmp_path, listed), problems, listed.warnings) == ([expected], [], ())
    (tmp_path / "l.txt").write_text(expected[0] + "\n")
    mask_dir = {} if folders == ("u", "u") else {"mask_dir": folders[1]}
    if (folders, files[1]) != (("u", "u"), "im0.png"):  # such a mask is no image's own beside it
        assert pairs(tmp_path, read_entries(config(tmp_path, **mask_dir, **keys), "labeled")) == [expected]


def test_masks_in_their_folder_with_an_ending(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/im{n}.png" for n in range(2)), *(f"masks/im{n}_mask.png" for n in range(2)))
    expected = [(f"images/im{n}.png", f"masks/im{n}_mask.png") for n in range(2)]
    keys = {"labeled": {"images": "images", "masks": "masks"}}
    assert pairs(tmp_path, read_entries(config(tmp_path, **keys), "labeled")) == expected
    (tmp_path / "l.txt").write_text("images/im0.png\nimages/im1.png\n")
    assert pairs(tmp_path, read_entries(config(tmp_path), "labeled")) == expected


def test_masks_that_keep_the_extension_of_their_image(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *(f"{folder}/im{n}.jpg{end}" for n in range(2) for folder, end in (("i", ""), ("m", ".png"))),
    )
    listed = read_entries(config(tmp_path, labeled={"images": "i", "masks": "m"}), "labeled")
    assert pairs(tmp_path, listed) == [(f"i/im{n}.jpg", f"m/im{n}.jpg.png") for n in range(2)]


def test_an_ending_that_nobody_knows_is_cured_by_the_setting(tmp_path: Path) -> None:
    touch(tmp_path, "images/im0.png", "masks/im0_xyz.png")
    keys = {"labeled": {"images": "images", "masks": "masks"}}
    with pytest.raises(DataError, match=r"as im0 and im0_xyz\); set data\.mask_suffix to what masks end"):
        read_entries(config(tmp_path, **keys), "labeled")
    assert read_entries(config(tmp_path, mask_suffix="_xyz", **keys), "labeled").entries
    (tmp_path / "l.txt").write_text("images/im0.png\n")
    with pytest.raises(DataError, match=r"; set data\.mask_dir or data\.mask_suffix, or list `image mask`"):
        read_entries(config(tmp_path), "labeled")
    assert read_entries(config(tmp_path, mask_suffix="_xyz"), "labeled").entries
    (tmp_path / "l.txt").write_text("images/im0.png masks/im0_xyz.png\n")
    assert read_entries(config(tmp_path), "labeled").entries
    touch(tmp_path, "elsewhere/im0.png")
    (tmp_path / "l.txt").write_text("images/im0.png\n")
    assert read_entries(config(tmp_path, mask_dir="elsewhere"), "labeled").entries


def test_two_masks_of_an_image_are_cured_by_the_setting(tmp_path: Path) -> None:
    touch(tmp_path, "u/im0.jpg", "u/im0_mask.png", "u/im0_seg.png")
    (tmp_path / "l.txt").write_text("u/im0.jpg\n")
    with pytest.raises(DataError, match=r"two masks, .* set data\.mask_suffix to _mask\.png or _seg\.png"):
        read_entries(config(tmp_path), "labeled")
    for suffix in ("_mask.png", "_seg.png"):
        listed = read_entries(config(tmp_path, mask_suffix=suffix), "labeled")
        assert pairs(tmp_path, listed) == [("u/im0.jpg", f"u/im0{suffix}")]


def test_two_files_of_one_stem(tmp_path: Path) -> None:
    touch(tmp_path, "u/a.jpg", "u/a.webp", "m/a.png")
    keys = {"labeled": {"images": "u", "masks": "m"}}
    for split in ("labeled", "unlabeled"):
        with pytest.raises(DataError, match=r"have the same stem .* keep one image and one mask of a stem"):
            read_entries(config(tmp_path, unlabeled="u", **keys), split)  # type: ignore[arg-type]
    (tmp_path / "l.txt").write_text("u/a.webp m/a.png\n")
    assert read_entries(config(tmp_path), "labeled").entries
    (tmp_path / "u" / "a.webp").unlink()
    assert read_entries(config(tmp_path, **keys), "labeled").entries


def test_letter_case_and_unicode_form_of_a_pair(tmp_path: Path) -> None:
    touch(tmp_path, "i/IM0.jpg", "m/im0.PNG", "i/e\u0301.png", "m/\u00e9.png")
    listed = read_entries(config(tmp_path, labeled={"images": "i", "masks": "m"}), "labeled")
    assert len(listed.entries) == 2
    assert "1 mask(s) are named in another letter case than their images, as" in listed.warnings[0]


def test_a_folder_of_jpeg_masks(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "masks/a.jpg")
    keys = {"labeled": {"images": "images", "masks": "masks"}}
    with pytest.raises(DataError, match=r"as a\.jpg; JPEG changes the values of masks: save them as PNG"):
        read_entries(config(tmp_path, **keys), "labeled")
    (tmp_path / "masks" / "a.jpg").rename(tmp_path / "masks" / "a.png")
    assert read_entries(config(tmp_path, **keys), "labeled").entries


def test_a_folder_of_one_kind_only(tmp_path: Path) -> None:
    touch(tmp_path, "u/a.png", "u/b.png")
    keys = {"images": "u", "masks": "u"}
    with pytest.raises(DataError, match=r"no mask was found .* set data\.image_suffix and data\.mask_suffix"):
        read_entries(config(tmp_path, labeled=keys), "labeled")
