from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny import PROJECT_ROOT

from protoseg.data.images import read_image, resize_image, resize_mask, save_image, save_mask
from protoseg.errors import DataError
from protoseg.input_rule import ResizeConfig


def gradient(height: int = 5, width: int = 7, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(height * 31 + width)
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_rgb_is_read_unchanged_and_writable(tmp_path: Path) -> None:
    image = gradient()
    save_image(tmp_path / "a.png", image)
    found = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found, image)
    found[0, 0, 0] = 1


def test_grey_becomes_three_equal_channels_or_one(tmp_path: Path) -> None:
    grey = gradient()[..., 0]
    save_image(tmp_path / "a.png", grey)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.repeat(grey[..., None], 3, 2))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1), grey[..., None])


def test_alpha_is_dropped_for_rgb_and_kept_for_four_channels(tmp_path: Path) -> None:
    rgba = gradient(channels=4)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), rgba[..., :3])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 4), rgba)


def test_palette_cmyk_and_one_bit_images(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), [[[10, 20, 30], [40, 50, 60]]])
    Image.new("CMYK", (4, 2), (0, 255, 255, 0)).save(tmp_path / "c.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "c.tif")[0, 0], [255, 0, 0])
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png", 1)[..., 0], [[255, 0]])


def test_16_bit_grey_is_rounded_to_8(tmp_path: Path) -> None:
    raw = np.array([[0, 128, 129, 257, 385, 386, 65406, 65407, 65535]], np.uint16)
    expected = [[0, 0, 1, 1, 1, 2, 254, 255, 255]]
    for name in ("a.png", "a.tif"):
        Image.fromarray(raw).save(tmp_path / name)
        np.testing.assert_array_equal(read_image(tmp_path / name, 1)[..., 0], expected)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 3)[..., 2], expected)
    four = read_image(tmp_path / "a.png", 4)
    np.testing.assert_array_equal(four[..., 1], expected)
    assert (four[..., 3] == 255).all()


@given(st.integers(0, 65535))
def test_16_bit_rule_is_round_half_free(value: int) -> None:
    assert (value + 128) // 257 == round(value / 257)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    image = gradient(4, 6)
    raw = Image.fromarray(image)
    exif = raw.getexif()
    exif[0x0112] = orientation
    raw.save(tmp_path / "a.png", exif=exif)
    upright = {
        1: image,
        2: image[:, ::-1],
        3: image[::-1, ::-1],
        4: image[::-1],
        5: image.transpose(1, 0, 2),
        6: image.transpose(1, 0, 2)[:, ::-1],
        7: image[::-1, ::-1].transpose(1, 0, 2),
        8: image.transpose(1, 0, 2)[::-1],
    }[orientation]
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), upright)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_npy_with_any_number_of_channels(tmp_path: Path, dtype: type) -> None:
    image = gradient(3, 4, 6)
    np.save(tmp_path / "a.npy", image.astype(dtype) * (257 if dtype is np.uint16 else 1))
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", 6), image)
    np.save(tmp_path / "g.npy", image[..., 0])
    np.testing.assert_array_equal(read_image(tmp_path / "g.npy", 1), image[..., :1])


def test_npy_faults(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", gradient(3, 4, 6))
    with pytest.raises(DataError, match=r"a\.npy has shape \(3, 4, 6\), expected \(H, W, 5\)"):
        read_image(tmp_path / "a.npy", 5)
    np.save(tmp_path / "f.npy", np.zeros((2, 2, 5)))
    with pytest.raises(DataError, match=r"holds floats \(0 to 0\)"):
        read_image(tmp_path / "f.npy", 5)
    np.save(tmp_path / "n.npy", np.full((2, 2, 5), -1))
    with pytest.raises(DataError, match="values -1 to -1"):
        read_image(tmp_path / "n.npy", 5)
    np.save(tmp_path / "o.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match=r"o\.npy cannot be read"):
        read_image(tmp_path / "o.npy", 5)
    save_image(tmp_path / "a.png", gradient())
    with pytest.raises(
        DataError, match=r"has PNG pixels of R\+G\+B, expected \(H, W, 5\).*; set data.in_channels=3"
    ):
        read_image(tmp_path / "a.png", 5)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp", ".webp"])
def test_damaged_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(gradient(64, 64)).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataError, match=r"image .*photo\.\w+ cannot be decoded"):
        read_image(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"photo\.\w+ cannot be decoded"):
        read_image(path)
    path.unlink()
    with pytest.raises(DataError, match=r"photo\.\w+ not found"):
        read_image(path)


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="holds floats"):
        read_image(tmp_path / "f.tif")


def test_resize_rules() -> None:
    image, mask = gradient(40, 60), gradient(40, 60)[..., 0]
    fixed = ResizeConfig(mode="fixed", height=20, width=24)
    assert resize_image(image, fixed).shape == (20, 24, 3)
    assert resize_mask(mask, fixed).shape == (20, 24)
    assert resize_image(image, ResizeConfig(mode="short_side", size=20)).shape == (20, 30, 3)
    assert resize_image(image, ResizeConfig(mode="long_side", size=30)).shape == (20, 30, 3)
    assert resize_image(image, ResizeConfig()) is image
    assert resize_mask(mask, ResizeConfig()) is mask


def test_resize_is_pillows_antialiased_bilinear() -> None:
    image = gradient(16, 24)
    rule = ResizeConfig(mode="fixed", height=8, width=9)
    expected = np.asarray(Image.fromarray(image).resize((9, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(resize_image(image, rule), expected)
    # halving with antialiasing averages: a fine checkerboard becomes grey, not black or white
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    halved = resize_image(board, ResizeConfig(mode="fixed", height=8, width=8))
    assert halved.min() > 100
    assert halved.max() < 156


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_bands_are_resized_independently(channels: int) -> None:
    image = gradient(16, 24, channels)
    rule = ResizeConfig(mode="fixed", height=10, width=8)
    found = resize_image(image, rule)
    for band in range(channels):
        rgb = np.repeat(image[..., band : band + 1], 3, 2)
        np.testing.assert_array_equal(found[..., band], resize_image(rgb, rule)[..., 0])


def test_mask_resize_invents_no_value() -> None:
    mask = np.array([[0, 2], [255, 7]], np.uint8)
    big = resize_mask(mask, ResizeConfig(mode="fixed", height=16, width=16))
    assert set(np.unique(big)) == {0, 2, 7, 255}
    np.testing.assert_array_equal(big[::8, ::8], mask)


def test_saved_masks_keep_values_and_colors(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    save_mask(tmp_path / "m.png", labels, [(1, 2, 3), (4, 5, 6)])
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        colors = np.asarray(image.convert("RGB"))
    assert colors[0].tolist() == [[1, 2, 3], [4, 5, 6], [0, 128, 0], [224, 224, 192]]
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.png"
    save_image(path, gradient())
    before = path.read_bytes()

    def half(self: Image.Image, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(DataError, match=r"m\.png cannot be written: .*No space left"):
        save_image(path, gradient(9, 9))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.png"]


def test_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        save_mask(tmp_path / "gone" / "m.png", np.zeros((2, 2), np.uint8), [])


def encoded(suffix: str) -> bytes:
    image = gradient(12, 12)
    if suffix == ".npy":
        stream = io.BytesIO()
        np.save(stream, image)
        return stream.getvalue()
    stream = io.BytesIO()
    raw = Image.fromarray(image)
    exif = raw.getexif()
    exif[0x0112] = 6
    raw.save(stream, {".jpg": "JPEG", ".png": "PNG", ".tif": "TIFF"}[suffix], exif=exif)
    return stream.getvalue()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".npy"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_a_data_error(
    tmp_path: Path, suffix: str, data: st.DataObject
) -> None:
    content = bytearray(encoded(suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(1, len(content)))]
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    try:
        found = read_image(path)
    except DataError:
        return  # anything else would end a training without naming the file
    assert found.ndim == 3
    assert found.shape[2] == 3
    assert found.dtype == np.uint8


# 64x64, red on the left and blue on the right; written once by pillow-heif, whose encoder is no dependency
HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABegABAAAAAAAAACUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA1mlwcnAAAAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xy"
    "bmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAC1t"
    "ZGF0AAAAISgBrxmABolHv1X//lw+/5hml7Z5O//yoc747oP9+UdIng=="
)


def test_heic_is_decoded(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif", reason="needs pip install pi-heif")
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC))
    image = read_image(tmp_path / "a.heic")
    assert image.shape == (64, 64, 3)
    assert np.abs(image[:, :24].astype(int) - (200, 40, 40)).max() < 20
    assert np.abs(image[:, 40:].astype(int) - (30, 60, 180)).max() < 20
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC)[:300])
    with pytest.raises(DataError, match=r"a\.heic cannot be decoded"):
        read_image(tmp_path / "a.heic")


def test_what_pillow_says_of_our_calls_is_shown() -> None:
    code = (
        "import warnings, protoseg.data.pictures\n"
        "for kind in (UserWarning, DeprecationWarning):\n"
        "    warnings.simplefilter('default', kind) if kind is DeprecationWarning else None\n"
        "    warnings.warn_explicit('said', kind, 'f.py', 1, module='PIL.TiffImagePlugin')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT_ROOT
    )
    assert "DeprecationWarning: said" in done.stderr
    assert "UserWarning" not in done.stderr
