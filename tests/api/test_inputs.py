from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import photo

from protoseg.api.inputs import FileReader, origin_of, read_pixels
from protoseg.data.find import FoundImage
from protoseg.data.images import read_image
from protoseg.data.pictures import Reading
from protoseg.errors import DataError
from protoseg.input_rule import InputRule, ResizeConfig

IMAGE = photo(1, 30, 41)


def pixels(image: Any, channels: int = 3, **how: Any) -> Any:
    reading = Reading(settings=False, **how)
    return read_pixels(image, channels, FileReader(channels, reading), reading)


def file_bytes(array: Any, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_every_kind_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(file_bytes(IMAGE))
    tensor = torch.from_numpy(IMAGE).permute(2, 0, 1)
    kinds = [
        path, str(path), FoundImage("a", path, Path("a.png")), path.read_bytes(),
        bytearray(path.read_bytes()), Image.open(path), Image.fromarray(IMAGE), IMAGE,
        np.asfortranarray(IMAGE), tensor, tensor.contiguous(), npy(IMAGE), file_bytes(IMAGE, "TIFF"),
    ]  # fmt: skip
    for image in kinds:
        np.testing.assert_array_equal(pixels(image), IMAGE)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_bands_become_channels_as_in_files(tmp_path: Path, channels: int) -> None:
    bands = {"L": IMAGE[..., 0], "RGB": IMAGE, "RGBA": np.dstack([IMAGE, IMAGE[..., 1]])}
    for array in bands.values():
        path = tmp_path / "a.png"
        Image.fromarray(array).save(path)
        expected = read_image(path, channels)
        assert expected.shape == (30, 41, channels)
        np.testing.assert_array_equal(pixels(Image.open(path), channels), expected)
        difference = np.abs(pixels(array, channels).astype(int) - expected.astype(int))
        # Pillow's grey of a colour may be rounded the other way
        assert difference.max() <= (channels == 1 and array.ndim == 3)


def test_deep_values_and_orientation_follow_the_input_rule(tmp_path: Path) -> None:
    deep = (np.arange(1200, dtype=np.uint16) * 50).reshape(30, 40)
    path = tmp_path / "deep.png"
    Image.fromarray(deep).save(path)
    for how in ({}, {"value_range": (0.0, 30000.0)}):
        expected = read_image(path, 1, Reading(**how))
        for image in (path, deep, Image.open(path), path.read_bytes(), torch.from_numpy(deep)):
            np.testing.assert_array_equal(pixels(image, 1, **how), expected)
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        turned = file_bytes(IMAGE, kind, exif=exif)
        np.testing.assert_array_equal(pixels(turned), np.rot90(IMAGE, -1))
        np.testing.assert_array_equal(pixels(Image.open(io.BytesIO(turned))), np.rot90(IMAGE, -1))
    stored = pixels(Image.open(io.BytesIO(file_bytes(IMAGE, exif=exif))), upright=False)
    np.testing.assert_array_equal(stored, IMAGE)


def test_a_reader_follows_the_input_rule() -> None:
    rule = InputRule(channels=4, mean=[0.5] * 4, std=[0.5] * 4, stride_multiple=8, resize=ResizeConfig(),
                     crop=(8, 8), value_range=(1, 9), exif="ignore")  # fmt: skip
    reader = FileReader.of(rule)
    assert (reader.channels, reader.how.value_range, reader.how.upright) == (4, (1, 9), False)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        ("https://example.org/a.jpg", "download it and give its bytes"),
        ("absent.png", "absent.png not found"),
        (".", r"is a folder; segment its images with model.stream\('.'\)"),
        (b"text", "image of 4 bytes cannot be decoded"),
        (7, "cannot segment a int; give a path, bytes"),
        (np.zeros((3, 20, 30), np.uint8), r"move the channels last: array.transpose\(1, 2, 0\)"),
        (np.zeros((2, 20, 30, 3), np.uint8), r"give several images as a list: list\(array\)"),
        (np.zeros((20, 30, 3), np.float32), r"expected uint8 in \[0, 255\]; for values in \[0, 1\]"),
        (np.zeros((20, 30, 3), np.bool_), "holds bool"),
        (np.zeros((0, 30, 3), np.uint8), r"shape \(0, 30, 3\)"),
        (np.zeros((20, 30, 7), np.uint8), r"expected \(H, W, 3\)"),
        (torch.zeros(2, 3, 20, 30), r"give several as a list: list\(tensor\)"),
        (torch.zeros(20, 30, 3, dtype=torch.uint8), r"tensor.permute\(2, 0, 1\)"),
        (torch.rand(3, 20, 30), r"holds float32, expected uint8"),
    ],
)  # fmt: skip
def test_what_cannot_be_segmented_is_told(image: Any, says: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)

    def both() -> None:
        origin_of(image)
        pixels(image)

    with pytest.raises(DataError, match=says):
        both()


def test_where_an_image_is_from(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.b.png"
    path.parent.mkdir()
    path.write_bytes(file_bytes(IMAGE))
    assert (origin_of(path).path, origin_of(path).name) == (path, "a.b")
    assert origin_of(FoundImage("x", path, Path("sub/a.b.png"))).name == "sub/a.b"
    assert origin_of(Image.open(path)).path == path
    one, other = origin_of(IMAGE), origin_of(IMAGE)
    assert one.path is None
    assert one.source != other.source
    assert one.name == "image"
