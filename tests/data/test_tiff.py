from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protoseg.data.images import read_image
from protoseg.data.pictures import Reading
from protoseg.data.tiff import decode_deep, read_layout, turn
from protoseg.errors import DataError

tifffile = pytest.importorskip("tifffile")
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (6, 7, 5), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (6, 7, 5), dtype=np.uint16)
RGB, GREY = {"photometric": "rgb"}, {"photometric": "minisblack"}


def write(path: Path, array: np.ndarray, *, planar: bool = False, **tags: object) -> Path:
    layout = {"planarconfig": "separate" if planar else "contig"} if array.ndim == 3 else {}
    tifffile.imwrite(path, np.moveaxis(array, -1, 0).copy() if planar else array, **layout, **tags)
    return path


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("array", [BYTES, DEEP])
@pytest.mark.parametrize(
    ("bands", "tags"),
    [(2, GREY), (3, GREY), (3, RGB), (4, GREY), (5, GREY), (5, RGB),
     (4, {**RGB, "extrasamples": ["unspecified"]})],
)  # fmt: skip
def test_every_band_is_read_as_it_is_stored(
    tmp_path: Path, bands: int, tags: dict[str, object], array: np.ndarray, planar: bool
) -> None:
    array = array[..., :bands]
    path = write(tmp_path / "a.tif", array, planar=planar, **tags)
    found = read_image(path, bands, Reading(value_range=(0, 65535)))
    wanted = array if array.dtype == np.uint8 else np.round(array / 257)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32, np.int8])
@pytest.mark.parametrize("bands", [1, 3])
def test_every_type_is_read_by_its_range(tmp_path: Path, dtype: type, bands: int) -> None:
    values = np.linspace(-100, 100, 6 * 7 * bands).round().reshape(6, 7, bands)
    low, high = (-100, 100) if np.dtype(dtype).kind != "u" else (4_000_000_000, 4_000_000_200)
    array = (values + (low + 100)).astype(dtype)
    path = write(tmp_path / "a.tif", array[..., 0] if bands == 1 else array, **(GREY if bands == 1 else RGB))
    found = read_image(path, bands, Reading(value_range=(low, high)))
    np.testing.assert_array_equal(found, np.floor((values + 100) * 255 / 200 + 0.5))


def test_nan_becomes_the_lowest_value(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.array([[0.5, np.nan, np.inf]], np.float32))
    found = read_image(path, 1, Reading(value_range=(0, 1)))
    assert found[0, :, 0].tolist() == [128, 0, 255]


def test_alpha_is_dropped_only_where_the_file_says_that_it_is_alpha(tmp_path: Path) -> None:
    four = BYTES[..., :4]
    alpha = write(tmp_path / "a.tif", four, **RGB, extrasamples=["unassalpha"])
    np.testing.assert_array_equal(read_image(alpha, 3), four[..., :3])
    data = write(tmp_path / "d.tif", four, **RGB, extrasamples=["unspecified"])
    with pytest.raises(
        DataError, match=r"has 4 bands of 8 bit unsigned \(RGB and 1 more\), expected"
    ) as caught:
        read_image(data, 3)
    assert "data.in_channels=4" in str(caught.value)
    assert "data.bands=[1,2,3]" in str(caught.value)
    np.testing.assert_array_equal(read_image(data, 3, Reading(bands=(1, 2, 3))), four[..., :3])
    np.testing.assert_array_equal(read_image(data, 2, Reading(bands=(4, 1))), four[..., [3, 0]])
    with pytest.raises(DataError, match="names band 5"):
        read_image(data, 1, Reading(bands=(5,)))


def test_grey_bands_are_no_colours(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", BYTES, **GREY)
    with pytest.raises(DataError, match=r"5 bands of 8 bit unsigned \(grey and 4 more\).*data.in_channels=5"):
        read_image(path, 3)


def test_pages_need_a_choice_and_overviews_are_no_pages(tmp_path: Path) -> None:
    pages = BYTES[..., :3].transpose(2, 0, 1)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pages, photometric="minisblack")
    with pytest.raises(DataError, match=r"has 3 pages, and only one is read.*data.page=0"):
        read_image(path, 1)
    for page in range(3):
        np.testing.assert_array_equal(read_image(path, 1, Reading(page=page))[..., 0], pages[page])
    with pytest.raises(DataError, match=r"has 3 pages, counted from 0; data\.page=3"):
        read_image(path, 1, Reading(page=3))
    with tifffile.TiffWriter(tmp_path / "cog.tif") as file:
        file.write(pages[0], photometric="minisblack")
        file.write(pages[0][::2, ::2], photometric="minisblack", subfiletype=1)
    np.testing.assert_array_equal(read_image(tmp_path / "cog.tif", 1)[..., 0], pages[0])
    for dtype in (np.uint8, np.float64):
        with tifffile.TiffWriter(tmp_path / "thumb.tif") as file:
            for page in (pages[0], pages[1]):
                file.write(page[::2, ::2].astype(dtype), photometric="minisblack", subfiletype=1)
                file.write(page.astype(dtype), photometric="minisblack")
        for page in (0, 1):
            found = read_image(tmp_path / "thumb.tif", 1, Reading(page=page, value_range=(0, 255)))
            np.testing.assert_array_equal(found[..., 0], pages[page])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_need_a_choice(tmp_path: Path, kind: str) -> None:
    first, second = Image.fromarray(BYTES[..., :3]), Image.fromarray(255 - BYTES[..., :3])
    first.save(tmp_path / "a.bin", kind, save_all=True, append_images=[second])
    with pytest.raises(DataError, match="has 2 pages"):
        read_image(tmp_path / "a.bin")
    assert read_image(tmp_path / "a.bin", 3, Reading(page=0)).shape == (6, 7, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("upright", [True, False])
def test_deep_and_plain_tiffs_are_turned_alike(tmp_path: Path, orientation: int, upright: bool) -> None:
    tag = [(274, "H", 1, orientation, True)]
    plain = write(tmp_path / "a.tif", BYTES[..., :3], **RGB, extratags=tag)
    deep = write(tmp_path / "b.tif", BYTES[..., :3].astype(np.uint16), **RGB, extratags=tag)
    how = Reading(value_range=(0, 255), upright=upright)
    found = read_image(plain, 3, how)
    np.testing.assert_array_equal(read_image(deep, 3, how), found)
    if not upright or orientation == 1:
        np.testing.assert_array_equal(found, BYTES[..., :3])
    elif orientation == 6:
        np.testing.assert_array_equal(found, np.rot90(BYTES[..., :3], -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_tiffs_of_any_mode_are_turned(tmp_path: Path, mode: str, orientation: int) -> None:
    # Pillow garbles grey ones that are not compressed
    array = DEEP[..., 0] if mode == "I;16" else BYTES[..., 0] if mode == "L" else BYTES[..., :3]
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.tif", exif=exif)
    image.save(tmp_path / "a.png")
    upright = read_image(tmp_path / "a.tif")
    plain = turn(read_image(tmp_path / "a.png"), orientation)
    np.testing.assert_array_equal(upright, plain)


def test_a_package_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", DEEP, **GREY)
    deep = write(tmp_path / "b.tif", DEEP[..., :3], **RGB)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(DataError, match=r"5 bands of 16 bit.*pip install 'protoseg\[tiff\]'"):
        read_image(path, 5)
    # colours of 16 bit need none
    found = read_image(deep, 3, Reading(value_range=(0, 65535)))
    np.testing.assert_array_equal(found, np.round(DEEP[..., :3] / 257))


def test_big_and_big_endian_tiffs(tmp_path: Path) -> None:
    for name, options in (("big.tif", {"bigtiff": True}), ("be.tif", {"byteorder": ">"})):
        tifffile.imwrite(tmp_path / name, DEEP, photometric="minisblack", planarconfig="contig", **options)
        layout = read_layout(tmp_path / name)
        assert (layout.bands, layout.bits, layout.size) == (5, 16, (6, 7))
        found = read_image(tmp_path / name, 5, Reading(value_range=(0, 65535)))
        np.testing.assert_array_equal(found, np.round(DEEP / 257))


def test_pgm_is_scaled_by_the_largest_value_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes())
    for value_range in (None, (0, 4095)):
        assert read_image(tmp_path / "a.pgm", 1, Reading(value_range=value_range))[0, :, 0].tolist() == [
            0,
            255,
        ]


def test_junk_is_no_image() -> None:
    assert decode_deep(b"junk") is None
