from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from protoseg.config.data import DataConfig
from protoseg.data.classes import read_classes
from protoseg.data.lists import read_entries
from protoseg.data.masks import MaskReader, mask_reader
from protoseg.data.palette import default_palette, voc_palette
from protoseg.errors import DataError

IDS = np.array([[0, 1, 2], [2, 255, 0]], np.uint8)


def reader(root: Path, label_map: object = None, **keys: object) -> MaskReader:
    raw = {"kind": "files", "root": str(root), "labeled": "l.txt", "val": "v.txt"}
    config = DataConfig.model_validate(
        {**raw, "classes": ["sky", "road", "car"], "label_map": label_map, **keys}
    )
    return mask_reader(config, read_classes(config))


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path)
    return path


def save_small_grey_png(path: Path, values: np.ndarray, bits: int) -> Path:
    """A grey PNG of 1, 2 or 4 bit, which Pillow reads but cannot write."""
    height, width = values.shape
    rows = b""
    for row in values:
        line = "".join(f"{int(v):0{bits}b}" for v in row)
        line += "0" * (-len(line) % 8)
        rows += b"\0" + bytes(int(line[i : i + 8], 2) for i in range(0, len(line), 8))

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )  # fmt: skip
    return path


def palette_png(path: Path, indices: np.ndarray, colors: list[tuple[int, int, int]]) -> Path:
    image = Image.fromarray(indices)
    image.putpalette([c for color in colors for c in color])
    image.save(path)
    return path


def rgb(ids: np.ndarray, table: dict[int, tuple[int, int, int]]) -> np.ndarray:
    out = np.zeros((*ids.shape, 3), np.uint8)
    for value, color in table.items():
        out[ids == value] = color
    return out


COLORS = {0: (128, 0, 0), 1: (0, 128, 0), 2: (0, 0, 128), 255: (255, 255, 255)}
COLOR_MAP = {"128,0,0": "sky", "0, 128, 0": 1, "0,0,128": "2", "255,255,255": "ignore"}


def test_grey_8_bit_class_ids(tmp_path: Path) -> None:
    labels = reader(tmp_path).read(save(tmp_path / "m.png", IDS))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, IDS)


def test_grey_16_bit_and_32_bit(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", IDS.astype(np.uint16))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    np.testing.assert_array_equal(reader(tmp_path).read(path), IDS)
    path = save(tmp_path / "m.tif", IDS.astype(np.int32))
    np.testing.assert_array_equal(reader(tmp_path).read(path), IDS)


def test_16_bit_values_above_255_map(tmp_path: Path) -> None:
    raw = np.array([[0, 1000, 65535]], np.uint16)
    path = save(tmp_path / "m.png", raw)
    found = reader(tmp_path, {"0": "sky", "1000": "road", "65535": "ignore"}).read(path)
    np.testing.assert_array_equal(found, [[0, 1, 255]])
    with pytest.raises(DataError, match=r"1000 \(1 pixels\), 65535 \(1 pixels\)"):
        reader(tmp_path).read(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_small_grey_pngs_keep_stored_values(tmp_path: Path, bits: int) -> None:
    values = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    path = save_small_grey_png(tmp_path / "m.png", values, bits)
    np.testing.assert_array_equal(reader(tmp_path).read(path), values)


@pytest.mark.parametrize(
    "label_map",
    [None, {"0": 0, "1": 1}, {"0": 0, "255": 1}, {"0,0,0": 0, "255,255,255": 1}],
)
def test_one_bit_masks(tmp_path: Path, label_map: object) -> None:
    values = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    path = save_small_grey_png(tmp_path / "m.png", values, 1)
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(reader(tmp_path, label_map).read(path), values)


def test_two_value_masks(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 255], [255, 0]], np.uint8))
    found = reader(tmp_path, {"0": 0, "255": 1}).read(path)
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])


def test_palette_png_by_index(tmp_path: Path) -> None:
    path = palette_png(tmp_path / "m.png", IDS, voc_palette(256))
    np.testing.assert_array_equal(reader(tmp_path).read(path), IDS)
    found = reader(tmp_path, {"0": 2, "1": 1, "2": 0}).read(path)
    np.testing.assert_array_equal(found, [[2, 1, 0], [0, 255, 2]])


def test_palette_png_by_color(tmp_path: Path) -> None:
    indices = np.array([[3, 1, 2], [2, 0, 3]], np.uint8)
    path = palette_png(tmp_path / "m.png", indices, [COLORS[255], COLORS[1], COLORS[2], COLORS[0]])
    np.testing.assert_array_equal(reader(tmp_path, COLOR_MAP).read(path), IDS)


def test_palette_color_without_a_class(tmp_path: Path) -> None:
    path = palette_png(tmp_path / "m.png", np.array([[0, 1, 1]], np.uint8), [(128, 0, 0), (9, 9, 8)])
    with pytest.raises(DataError, match=r"colour\(s\) without a class: 9,9,8 \(2 pixels\)"):
        reader(tmp_path, COLOR_MAP).read(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_rgb_by_color(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "m.png", rgb(IDS, COLORS), mode)
    np.testing.assert_array_equal(reader(tmp_path, COLOR_MAP).read(path), IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_grey_values_in_several_channels(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "m.png", IDS, mode)
    np.testing.assert_array_equal(reader(tmp_path).read(path), IDS)


def test_rgb_without_a_table_lists_its_colors(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", rgb(IDS, COLORS))
    with pytest.raises(DataError) as info:
        reader(tmp_path).read(path)
    assert "128,0,0 (2 pixels)" in str(info.value)
    assert "255,255,255 (1 pixels)" in str(info.value)


def test_cvat_labelmap(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\r\nvoid:0,0,0::\r\ncar:0,0,128::\r\n"
        "road:0,128,0:part:act\r\nsky:128,0,0::\r\n"
    )
    path = save(tmp_path / "m.png", rgb(IDS, {**COLORS, 255: (0, 0, 0)}))
    np.testing.assert_array_equal(reader(tmp_path, "labelmap.txt").read(path), IDS)


@pytest.mark.parametrize("palette", [False, True])
def test_cvat_export_folder_by_settings_alone(tmp_path: Path, palette: bool) -> None:
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "labelmap.txt").write_text("sky:128,0,0::\nroad:0,128,0::\ncar:0,0,128::\n")
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("frame_000001")
    save(tmp_path / "JPEGImages/frame_000001.png", rgb(IDS, COLORS))
    mask = tmp_path / "SegmentationClass/frame_000001.png"
    ids = np.where(IDS == 255, 0, IDS).astype(np.uint8)
    if palette:
        palette_png(mask, (ids + 1).astype(np.uint8), [(0, 0, 0), *(COLORS[i] for i in range(3))])
    else:
        save(mask, rgb(ids, COLORS))
    config = DataConfig(
        kind="files", root=str(tmp_path), labeled="ImageSets/Segmentation/default.txt",
        val="ImageSets/Segmentation/default.txt", classes="labelmap.txt", label_map="labelmap.txt",
    )  # fmt: skip
    (entry,) = read_entries(config, "labeled").entries
    assert entry.mask == mask
    np.testing.assert_array_equal(mask_reader(config, read_classes(config)).read(mask), ids)


def test_labelmap_gives_names_and_colors(tmp_path: Path) -> None:
    text = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:10,20,30::\nignore:1,1,1::\n"
    (tmp_path / "labelmap.txt").write_text(text)
    config = DataConfig(
        kind="files", root=str(tmp_path), labeled="l", val="v", classes="labelmap.txt",
        label_map="labelmap.txt",
    )  # fmt: skip
    classes = read_classes(config)
    assert [(c.name, c.color) for c in classes] == [
        ("background", (0, 0, 0)),
        ("cat", (10, 20, 30)),
    ]
    path = save(tmp_path / "m.png", np.array([[[10, 20, 30], [1, 1, 1], [0, 0, 0]]], np.uint8))
    np.testing.assert_array_equal(mask_reader(config, classes).read(path), [[1, 255, 0]])


def test_labelmap_faults(tmp_path: Path) -> None:
    (tmp_path / "labelmap.txt").write_text("sky:128,0,0::\nroad=1\n")
    with pytest.raises(DataError, match=r"labelmap\.txt, line 2: expected name:r,g,b::"):
        reader(tmp_path, "labelmap.txt")
    (tmp_path / "labelmap.txt").write_text("sky:128,0,0::\ntree:1,2,3::\n")
    with pytest.raises(DataError, match=r"names \['tree'\], which data.classes does not have"):
        reader(tmp_path, "labelmap.txt")
    (tmp_path / "labelmap.txt").write_text("sky:128,0,300::\n")
    with pytest.raises(DataError, match="'128,0,300' is not a colour"):
        reader(tmp_path, "labelmap.txt")


@pytest.mark.parametrize(
    ("label_map", "message"),
    [
        ({"x": 0}, r"key 'x' must be a value"),
        ({"1.5": 0}, r"key '1.5' must be a value"),
        ({"1,2": 0}, r"'1,2' is not a colour"),
        ({"0": 3}, r"'0' maps to 3, but class ids go from 0 to 2"),
        ({"0": "tree"}, r"maps to 'tree', which is no class"),
    ],
)
def test_bad_label_maps(tmp_path: Path, label_map: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        reader(tmp_path, label_map)


def test_numeric_text_is_a_class_id_and_names_come_first(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[7, 8]], np.uint8))
    found = reader(tmp_path, {"7": "1", "8": "0"}, classes=["1", "b"]).read(path)
    np.testing.assert_array_equal(found, [[0, 0]])


def test_unknown_values_are_counted(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 9, 9], [7, 1, 255]], np.uint8))
    labels, unknown = reader(tmp_path).decode(path)
    assert unknown == {"9": 2, "7": 1}
    np.testing.assert_array_equal(labels, [[0, 255, 255], [255, 1, 255]])
    with pytest.raises(DataError, match=r"9 \(2 pixels\), 7 \(1 pixels\)"):
        reader(tmp_path).read(path)


@pytest.mark.parametrize("name", ["m.jpg", "m.png"])
def test_lossy_data_are_refused_whatever_the_name(tmp_path: Path, name: str) -> None:
    # the artefacts of ids as small as these are ids, too
    noise = np.random.default_rng(0).integers(0, 3, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name, "JPEG")
    with pytest.raises(DataError, match=f"{name} holds JPEG data.*lossy"):
        reader(tmp_path).read(tmp_path / name)


def test_jpeg_in_a_tiff_and_lossy_webp_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (32, 32), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "m.tif", compression="jpeg")
    with pytest.raises(DataError, match="holds JPEG data"):
        reader(tmp_path).read(tmp_path / "m.tif")
    Image.fromarray(noise).convert("RGB").save(tmp_path / "w.png", "WEBP")
    with pytest.raises(DataError, match="holds lossy WebP data"):
        reader(tmp_path).read(tmp_path / "w.png")


@pytest.mark.parametrize(
    "label_map", [None, {"0": "sky", "255": "road"}, {"0,0,0": "sky", "255,0,0": "road"}]
)
def test_soft_edges_are_named(tmp_path: Path, label_map: object) -> None:
    small = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).resize(
        (40, 40), Image.Resampling.BILINEAR
    )
    values = np.asarray(small)
    if label_map is not None and "0,0,0" in label_map:
        values = np.stack([values, 0 * values, 0 * values], 2)
    with pytest.raises(DataError, match="these are soft edges"):
        reader(tmp_path, label_map).read(save(tmp_path / "m.png", values))


def test_many_forgotten_ids_are_no_soft_edges(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        reader(tmp_path).read(save(tmp_path / "m.png", np.arange(30, dtype=np.uint8)[None]))
    assert "soft" not in str(caught.value)


CLEAR = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 0], [255, 0, 0, 128]]], np.uint8)


@pytest.mark.parametrize(("target", "label"), [("sky", 0), ("ignore", 255)])
def test_transparent_pixels_are_what_the_map_says(tmp_path: Path, target: str, label: int) -> None:
    path = save(tmp_path / "m.png", CLEAR)
    colors = {"255,0,0": "road", "0,0,0": "car"}
    labels, unknown = reader(tmp_path, colors).decode(path)
    assert unknown == {"transparent": 2}
    np.testing.assert_array_equal(labels, [[1, 255, 255, 1]])
    found = reader(tmp_path, {**colors, "transparent": target}).read(path)
    np.testing.assert_array_equal(found, [[1, label, label, 1]])
    grey = save(tmp_path / "g.png", np.array([[[1, 255], [1, 0]]], np.uint8))
    with pytest.raises(DataError, match=r"transparent \(1 pixels\)"):
        reader(tmp_path).read(grey)


def test_transparency_of_a_palette_counts_where_its_colours_do(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([9, 9, 9, 9, 9, 9, 50, 0, 0])
    image.save(tmp_path / "m.png", transparency=1)
    np.testing.assert_array_equal(reader(tmp_path).read(tmp_path / "m.png"), [[0, 1, 2]])
    _, unknown = reader(tmp_path, {"9,9,9": 0, "50,0,0": 2}).decode(tmp_path / "m.png")
    assert unknown == {"transparent": 1}


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [(np.int16, -9999), (np.uint32, 4294967295), (np.int32, -2147483648), (np.int8, -1), (np.uint16, 65535)],
)
def test_nodata_values_are_shown_as_they_are_and_can_be_mapped(
    tmp_path: Path, dtype: type, nodata: int
) -> None:
    tifffile = pytest.importorskip("tifffile")
    array = np.array([[0, 1, nodata]], dtype)
    tifffile.imwrite(tmp_path / "m.tif", array)
    np.save(tmp_path / "m.npy", array)
    for name in ("m.tif", "m.npy"):
        _, unknown = reader(tmp_path).decode(tmp_path / name)
        assert unknown == {str(nodata): 1}
        mapped = reader(tmp_path, {"0": 0, "1": "road", str(nodata): "ignore"})
        np.testing.assert_array_equal(mapped.read(tmp_path / name), [[0, 1, 255]])


def test_masks_of_several_bands_or_pages_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(
        tmp_path / "m.tif", np.zeros((4, 5, 5), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    with pytest.raises(DataError, match="has 5 bands"):
        reader(tmp_path).read(tmp_path / "m.tif")
    tifffile.imwrite(tmp_path / "p.tif", np.stack([IDS, IDS[:, ::-1]]), photometric="minisblack")
    with pytest.raises(DataError, match="has 2 pages"):
        reader(tmp_path).read(tmp_path / "p.tif")
    found = reader(tmp_path, page=1).read(tmp_path / "p.tif")
    np.testing.assert_array_equal(found, IDS[:, ::-1])


def test_colours_of_16_bit_keep_their_values(tmp_path: Path) -> None:
    import cv2

    wide = np.repeat(np.array([[0, 300, 2]], np.uint16)[..., None], 3, 2)
    cv2.imwrite(str(tmp_path / "m.png"), wide)
    found = reader(tmp_path, {"0": 0, "300": 1, "2": 2}).read(tmp_path / "m.png")
    np.testing.assert_array_equal(found, [[0, 1, 2]])
    cv2.imwrite(str(tmp_path / "c.png"), np.array([[[0, 0, 128 * 257], [0, 128 * 257, 0]]], np.uint16))
    np.testing.assert_array_equal(reader(tmp_path, COLOR_MAP).read(tmp_path / "c.png"), [[0, 1]])
    cv2.imwrite(str(tmp_path / "x.png"), np.array([[[0, 0, 1000], [0, 128, 0]]], np.uint16))
    with pytest.raises(DataError, match="colours of more than 8 bits"):
        reader(tmp_path, COLOR_MAP).read(tmp_path / "x.png")


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.T, 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].T, 8: lambda a: np.rot90(a),
}  # fmt: skip


def tagged(path: Path, array: np.ndarray, orientation: int) -> Path:
    image = Image.fromarray(array)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_by_its_own_tag(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tagged(tmp_path / f"m{suffix}", IDS, orientation)
    image = tagged(tmp_path / "i.jpg", np.zeros((2, 3, 3), np.uint8), 6)
    np.testing.assert_array_equal(reader(tmp_path).read(path), TURNED[orientation](IDS))
    if orientation != 1:
        np.testing.assert_array_equal(reader(tmp_path).read(path, image), TURNED[orientation](IDS))
    np.testing.assert_array_equal(reader(tmp_path, exif="ignore").read(path, image), IDS)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_without_a_tag_follows_its_image_where_only_that_fits(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    image = tagged(tmp_path / f"i{suffix}", np.zeros((2, 3, 3), np.uint8), orientation)
    stored = save(tmp_path / "m.png", IDS)
    wanted = TURNED[orientation](IDS) if orientation >= 5 else IDS
    np.testing.assert_array_equal(reader(tmp_path).read(stored, image), wanted)
    # drawn on the picture as it is shown: nothing to do
    upright = save(tmp_path / "u.png", np.ascontiguousarray(TURNED[orientation](IDS)))
    np.testing.assert_array_equal(reader(tmp_path).read(upright, image), TURNED[orientation](IDS))


def test_reduce_zero_label(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 1, 3, 255]], np.uint8))
    found = reader(tmp_path, reduce_zero_label=True).read(path)
    np.testing.assert_array_equal(found, [[255, 0, 2, 255]])
    with pytest.raises(ValueError, match=r"needs data.label_map=null"):
        reader(tmp_path, {"0": 0}, reduce_zero_label=True)


def built_in(root: Path, name: str, **keys: object) -> tuple[MaskReader, list[str]]:
    base = {"kind": "files", "root": str(root), "labeled": "l", "val": "v", "label_map": name}
    config = DataConfig.model_validate({**base, **keys})
    classes = read_classes(config)
    return mask_reader(config, classes), [item.name for item in classes]


def test_built_in_maps(tmp_path: Path) -> None:
    ids = save(tmp_path / "a_gtFine_labelIds.png", np.array([[7, 8, 26, 33, 0, 4, 255]], np.uint8))
    found, names = built_in(tmp_path, "cityscapes")
    assert (len(names), names[0], names[13], names[18]) == (19, "road", "car", "bicycle")
    np.testing.assert_array_equal(found.read(ids), [[0, 1, 13, 18, 255, 255, 255]])
    train_ids = save(tmp_path / "a_gtFine_labelTrainIds.png", np.array([[7]], np.uint8))
    with pytest.raises(DataError, match=r"holds train ids already; set data.label_map=null"):
        found.read(train_ids)
    found, names = built_in(tmp_path, "ade20k")
    assert (len(names), names[0], names[149]) == (150, "wall", "flag")
    np.testing.assert_array_equal(
        found.read(save(tmp_path / "m.png", np.array([[0, 1, 150]], np.uint8))), [[255, 0, 149]]
    )
    found, names = built_in(tmp_path, "voc")
    assert (len(names), names[15]) == (21, "person")
    indices = np.array([[0, 15, 255]], np.uint8)
    for path in (
        save(tmp_path / "g.png", indices),
        palette_png(tmp_path / "p.png", indices, voc_palette(256)),
        save(tmp_path / "c.png", np.array(voc_palette(256), np.uint8)[indices]),
    ):
        np.testing.assert_array_equal(found.read(path), [[0, 15, 255]])
    with pytest.raises(DataError, match=r"does not name, as aeroplane"):
        built_in(tmp_path, "voc", classes=["background", "cat"])


def test_npy_masks(tmp_path: Path) -> None:
    np.save(tmp_path / "m.npy", IDS.astype(np.int64))
    np.testing.assert_array_equal(reader(tmp_path).read(tmp_path / "m.npy"), IDS)
    np.save(tmp_path / "b.npy", IDS == 1)
    np.testing.assert_array_equal(reader(tmp_path).read(tmp_path / "b.npy"), IDS == 1)
    np.save(tmp_path / "n.npy", np.array([[-1, 70000]]))
    with pytest.raises(DataError, match=r"-1 \(1 pixels\), 70000 \(1 pixels\)"):
        reader(tmp_path).read(tmp_path / "n.npy")
    np.save(tmp_path / "f.npy", np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="dtype float32"):
        reader(tmp_path).read(tmp_path / "f.npy")


def test_unreadable_masks_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.png not found"):
        reader(tmp_path).read(tmp_path / "gone.png")
    (tmp_path / "bad.png").write_bytes(b"not a png")
    with pytest.raises(DataError, match=r"bad\.png cannot be decoded"):
        reader(tmp_path).read(tmp_path / "bad.png")
    good = save(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8))
    good.write_bytes(good.read_bytes()[:300])
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        reader(tmp_path).read(good)
    path = save(tmp_path / "float.tif", np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="holds floats"):
        reader(tmp_path).read(path)


def test_classes_file_and_palette(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("sky\r\n\r\ntall building\n")
    base = {"kind": "files", "root": str(tmp_path), "labeled": "l", "val": "v"}
    config = DataConfig.model_validate({**base, "classes": "classes.txt"})
    assert [c.name for c in read_classes(config)] == ["sky", "tall building"]
    assert [c.color for c in read_classes(config)] == default_palette(["sky", "tall building"])
    config = DataConfig.model_validate({**base, "classes": ["a", "b"], "palette": [[1, 2, 3], [4, 5, 6]]})
    assert [c.color for c in read_classes(config)] == [(1, 2, 3), (4, 5, 6)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"classes": []}, "data.classes is empty"),
        ({"classes": ["a", "a"]}, r"names \['a'\] more than once"),
        ({"classes": ["a", "b"], "palette": [[0, 0, 0]]}, "1 colours for 2 classes"),
        ({"classes": ["a", "b"], "ignore_index": 1}, "also the id of class 'b'"),
        ({"classes": [f"c{i}" for i in range(256)]}, "at most 255"),
        ({"classes": "gone.txt"}, "data.classes=gone.txt not found"),
    ],
)
def test_bad_classes(tmp_path: Path, keys: dict[str, object], message: str) -> None:
    base = {"kind": "files", "root": str(tmp_path), "labeled": "l", "val": "v"}
    with pytest.raises(DataError, match=message):
        read_classes(DataConfig.model_validate({**base, **keys}))


@given(
    ids=hnp.arrays(
        np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.integers(0, 4)
    ),
    palette=st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=5, max_size=5, unique=True),
)
def test_color_lookup_inverts_any_palette(ids: np.ndarray, palette: list[tuple[int, int, int]]) -> None:
    table = {color: i for i, color in enumerate(palette)}
    found = MaskReader(5, 255, {}, table)._by_color(np.array(palette, np.uint8)[ids])
    np.testing.assert_array_equal(found, ids)
