from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from protoseg.input_rule import ResizeConfig
from serving.errors import ServingError
from serving.pixels.decode import ImageLimits, decode, resize, webp_size

LIMITS = ImageLimits(25_000_000, 16384, ("jpeg", "png", "webp", "bmp", "tiff", "gif"))


def picture(height: int = 23, width: int = 37) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    planes = [x * 255 // max(1, width - 1), y * 255 // max(1, height - 1), (x + y) % 256]
    return np.stack(planes, 2).astype(np.uint8)


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rgb() -> Image.Image:
    return Image.fromarray(picture())


def animated(kind: str) -> bytes:
    second = Image.fromarray(255 - picture())
    return save(rgb(), kind, save_all=True, append_images=[second], lossless=True)


def with_orientation(value: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return save(rgb(), kind, exif=exif, **({"quality": 95} if kind == "JPEG" else {}))


CASES: dict[str, bytes] = {
    "png": save(rgb(), "PNG"),
    "png grey": save(rgb().convert("L"), "PNG"),
    "png grey and alpha": save(rgb().convert("LA"), "PNG"),
    "png alpha": save(rgb().convert("RGBA"), "PNG"),
    "png palette": save(rgb().quantize(17), "PNG"),
    "png palette with transparency": save(rgb().quantize(17), "PNG", transparency=3),
    "png one bit": save(rgb().convert("1"), "PNG"),
    "png 16 bit": save(Image.fromarray(picture()[..., 0].astype(np.uint16) * 257 + 100), "PNG"),
    "png interlace": save(rgb(), "PNG", interlace=1),
    "png 1x1": save(Image.fromarray(picture(1, 1)), "PNG"),
    "png 1xN": save(Image.fromarray(picture(1, 300)), "PNG"),
    "png Nx1": save(Image.fromarray(picture(300, 1)), "PNG"),
    "jpeg": save(rgb(), "JPEG", quality=90),
    "jpeg progressive": save(rgb(), "JPEG", progressive=True),
    "jpeg 444": save(rgb(), "JPEG", subsampling=0),
    "jpeg grey": save(rgb().convert("L"), "JPEG"),
    "jpeg cmyk": save(rgb().convert("CMYK"), "JPEG"),
    "webp": save(rgb(), "WEBP", lossless=True),
    "webp lossy": save(rgb(), "WEBP"),
    "webp alpha": save(rgb().convert("RGBA"), "WEBP"),
    "webp animated": animated("WEBP"),
    "png animated": animated("PNG"),
    "gif animated": animated("GIF"),
    "bmp": save(rgb(), "BMP"),
    "bmp grey": save(rgb().convert("L"), "BMP"),
    "tiff": save(rgb(), "TIFF"),
    "tiff 16 bit": save(Image.fromarray(picture()[..., 0].astype(np.uint16) * 257), "TIFF"),
    **{f"jpeg orientation {i}": with_orientation(i, "JPEG") for i in range(1, 9)},
    **{f"tiff orientation {i}": with_orientation(i, "TIFF") for i in range(1, 9)},
    **{f"png orientation {i}": with_orientation(i, "PNG") for i in range(1, 9)},
}


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_same_pixels_as_the_trainer(name: str, channels: int, tmp_path: Path) -> None:
    trainer = pytest.importorskip("protoseg.data.images", exc_type=ImportError)
    path = tmp_path / "image.bin"
    path.write_bytes(CASES[name])
    # a training refuses animations unless it is told which frame counts
    expected = trainer.read_image(path, channels, trainer.Reading(page=0))
    np.testing.assert_array_equal(decode(CASES[name], LIMITS, channels), expected)


@pytest.mark.parametrize(
    "rule",
    [
        ResizeConfig(mode="fixed", height=16, width=50),
        ResizeConfig(mode="short_side", size=11),
        ResizeConfig(mode="long_side", size=64),
        ResizeConfig(),
    ],
)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_same_resize_as_the_trainer(rule: ResizeConfig, channels: int) -> None:
    trainer = pytest.importorskip("protoseg.data.images", exc_type=ImportError)
    image = np.concatenate([picture(), picture()], axis=2)[..., :channels]
    np.testing.assert_array_equal(resize(image, rule), trainer.resize_image(image, rule))


def deep(kind: str, bands: int, dtype: Any = np.uint16, top: int = 4095) -> bytes:
    y, x = np.mgrid[:9, :11]
    values = np.stack([(x * 37 + y * 91 + band * 517) % (top + 1) for band in range(bands)], 2)
    values = values[..., 0] if bands == 1 else values
    order = {3: [2, 1, 0], 4: [2, 1, 0, 3]}.get(bands)
    array = values.astype(dtype)
    if np.dtype(dtype).kind == "f":
        array = array / np.float32(top)
    return bytes(cv2.imencode(f".{kind}", array if order is None else array[..., order])[1].tobytes())


DEEP = {
    "grey png": deep("png", 1), "rgb png": deep("png", 3), "rgba png": deep("png", 4), "grey tiff":
    deep("tiff", 1),
    "rgb tiff": deep("tiff", 3),
}  # fmt: skip


@pytest.mark.parametrize("value_range", [(0, 4095), (100, 900.5), (0, 65535)])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", list(DEEP))
def test_deep_values_are_stretched_as_in_the_trainer(
    name: str, channels: int, value_range: tuple[float, float], tmp_path: Path
) -> None:
    trainer = pytest.importorskip("protoseg.data.images", exc_type=ImportError)
    path = tmp_path / "image.bin"
    path.write_bytes(DEEP[name])
    expected = trainer.read_image(path, channels, trainer.Reading(value_range=value_range))
    found = decode(DEEP[name], LIMITS, channels, value_range)
    np.testing.assert_array_equal(found, expected)
    if value_range == (0, 4095) and channels != 4:
        assert found.max() > 60  # with the full 16 bits it would be 4


def test_float_tiff_by_its_range() -> None:
    data = deep("tiff", 1, np.float32, 255)
    found = decode(data, LIMITS, 1, (0, 1))
    np.testing.assert_array_equal(
        found[..., 0], np.asarray(np.mgrid[:9, :11][1] * 37 + np.mgrid[:9, :11][0] * 91) % 256
    )


def test_pixels_as_stored() -> None:
    for kind in ("PNG", "JPEG", "TIFF"):
        found = decode(with_orientation(6, kind), LIMITS, exif="ignore")
        assert found.shape == picture().shape
        if kind != "JPEG":
            np.testing.assert_array_equal(found, picture())


def test_bands_that_are_no_colours_are_refused() -> None:
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, picture()[..., [0, 1, 2, 0]], photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(ServingError, match=r"4 bands of 8 bit unsigned \(RGB and 1 more\)"):
        decode(stream.getvalue(), LIMITS)
    np.testing.assert_array_equal(decode(stream.getvalue(), LIMITS, 4), picture()[..., [0, 1, 2, 0]])


def test_orientation_six_is_a_quarter_turn() -> None:
    upright = decode(with_orientation(6, "PNG"), LIMITS)
    np.testing.assert_array_equal(upright, np.rot90(picture(), k=-1))


def test_sixteen_bit_is_divided_by_257_and_rounded() -> None:
    values = np.array([[0, 128, 129, 385, 386, 65535]], np.uint16)
    grey = decode(save(Image.fromarray(values), "PNG"), LIMITS, channels=1)
    assert grey[0, :, 0].tolist() == [0, 0, 1, 1, 2, 255]


def test_the_first_frame_of_an_animation_counts() -> None:
    np.testing.assert_array_equal(decode(CASES["webp animated"], LIMITS), picture())


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("webp")])
def test_webp_size_agrees_with_pillow(name: str) -> None:
    with Image.open(io.BytesIO(CASES[name])) as image:
        assert webp_size(CASES[name]) == image.size


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF", "TIFF", "WEBP", "JPEG"])
def test_too_many_pixels_are_refused_before_they_are_decoded(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    monkeypatch.setattr("serving.pixels.decode.simplejpeg.decode_jpeg", load)
    data = save(Image.fromarray(picture(40, 30)), kind)
    with pytest.raises(ServingError) as caught:
        decode(data, ImageLimits(1000, 16384, LIMITS.formats))
    assert caught.value.code == "too_many_pixels"


def bomb(width: int, height: int) -> bytes:
    """A PNG that unpacks to width x height black pixels, without writing them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(1 + 3 * min(width, 9999)), 9)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


JPEG = CASES["jpeg"]
MANY_SCANS = JPEG + b"\xff\xda" * 200


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (b"hello", 415, "unsupported_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image"),
        (b"%PDF-1.7", 415, "unsupported_image"),
        (b"\x89PNG\r\n\x1a\n", 422, "corrupt_image"),
        (CASES["png"][:40], 422, "corrupt_image"),
        (CASES["png"][:-30], 422, "corrupt_image"),
        (JPEG[: len(JPEG) // 2], 422, "corrupt_image"),
        (CASES["webp"][:30], 422, "corrupt_image"),
        (CASES["bmp"][:60], 422, "corrupt_image"),
        (CASES["gif animated"][:12], 422, "corrupt_image"),
        (b"\xff\xd8\xff", 422, "corrupt_image"),
        (MANY_SCANS, 422, "corrupt_image"),
        (bomb(9000, 9000), 413, "too_many_pixels"),
        (bomb(20000, 1), 413, "too_many_pixels"),
        (bomb(2**31 - 1, 2**31 - 1), 413, "too_many_pixels"),
        (bomb(0, 5), 422, "corrupt_image"),
        (save(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), 422, "corrupt_image"),
    ],
)
def test_bad_data_has_a_status(data: bytes, status: int, code: str) -> None:
    with pytest.raises(ServingError) as caught:
        decode(data, LIMITS)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_limits_are_exact() -> None:
    data = save(Image.fromarray(picture(10, 20)), "PNG")
    assert decode(data, ImageLimits(200, 20, ("png",))).shape == (10, 20, 3)
    for limits in (ImageLimits(199, 20, ("png",)), ImageLimits(200, 19, ("png",))):
        with pytest.raises(ServingError) as caught:
            decode(data, limits)
        assert caught.value.status == 413


def test_formats_are_recognised_by_content_and_can_be_switched_off() -> None:
    with pytest.raises(ServingError) as caught:
        decode(CASES["tiff"], ImageLimits(10**6, 1000, ("png", "jpeg")))
    assert caught.value.status == 415
    assert "PNG, JPEG" in caught.value.message


def test_mutated_images_only_raise_serving_errors() -> None:
    rng = np.random.default_rng(0)
    names = [name for name in CASES if "orientation" not in name]
    limits = ImageLimits(1_000_000, 4096, LIMITS.formats)
    outcomes, statuses = {"ok": 0, "refused": 0}, set()
    for index in range(600):
        data = bytearray(CASES[names[index % len(names)]])
        for _ in range(int(rng.integers(1, 8))):
            data[int(rng.integers(0, len(data)))] = int(rng.integers(0, 256))
        if rng.random() < 0.3:
            data = data[: int(rng.integers(0, len(data)))]
        try:
            decode(bytes(data), limits)
            outcomes["ok"] += 1
        except ServingError as error:
            statuses.add(error.status)
            outcomes["refused"] += 1
    assert statuses <= {400, 413, 415, 422}
    assert min(outcomes.values()) > 20
