"""Labels from a folder: every kind of file, and what does not fit."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from protoseg.data.soft_labels import SoftLabels, write_soft_labels
from protoseg.errors import DataError
from protoseg.method.pseudo_labels import unpack_labels

CLASSES = ["sky", "tree", "car"]


def open_labels(folder, names=("a",), **settings):
    root = folder.parent
    return SoftLabels(folder, [root / "images" / f"{name}.jpg" for name in names], CLASSES, root, **settings)


def halves(height=4, width=6):
    """Left sky at 0.8, right car at 0.6."""
    probs = np.full((3, height, width), 0.1, np.float32)
    probs[0, :, : width // 2], probs[2, :, width // 2 :], probs[1, :, width // 2 :] = 0.8, 0.6, 0.3
    return probs


def labels_of(given, size=(4, 6), temperature=(1.0, 1.0, 1.0)):
    packed = given.packed(0, size, torch.tensor(temperature))
    label, confidence = unpack_labels(torch.from_numpy(packed)[None])
    return label[0], confidence[0]


@pytest.mark.parametrize("kind", ["npz", "float npz", "npy", "soft"])
def test_probabilities(tmp_path, kind):
    folder = tmp_path / "labels"
    folder.mkdir()
    if kind in ("npz", "soft"):
        write_soft_labels(folder / ("soft/a.npz" if kind == "soft" else "a.npz"), halves(), CLASSES)
    elif kind == "float npz":
        np.savez(folder / "a.npz", probs=halves().astype(np.float16))
    else:
        np.save(folder / "a.npy", halves())
    label, confidence = labels_of(open_labels(folder))
    assert (label[:, :3] == 0).all()
    assert (label[:, 3:] == 2).all()
    assert confidence[0].tolist() == pytest.approx([0.8] * 3 + [0.6] * 3, abs=0.01)


def test_temperature_by_the_class_that_is_named(tmp_path):
    np.save(tmp_path / "a.npy", halves())
    _, confidence = labels_of(open_labels(tmp_path), temperature=(1.0, 1.0, 2.0))
    assert confidence[0, 0].item() == pytest.approx(0.8, abs=1e-4)
    # square roots of 0.6, 0.3, 0.1, normalised again
    expected = math.sqrt(0.6) / (math.sqrt(0.6) + math.sqrt(0.3) + math.sqrt(0.1))
    assert confidence[0, 5].item() == pytest.approx(expected, abs=1e-4)


def test_masks_with_and_without_confidence_as_predict_writes_them(tmp_path):
    ids = np.zeros((4, 6), np.uint8)
    ids[:, 3:], ids[0] = 2, 255
    (tmp_path / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "masks" / "a.png")
    label, confidence = labels_of(open_labels(tmp_path))
    assert label[1].tolist() == [0, 0, 0, 2, 2, 2]
    assert confidence[1].min() > 0.999
    assert (confidence[0] == 0).all(), "unlabelled pixels are never believed, not even at a threshold of 0"
    (tmp_path / "confidence").mkdir()
    Image.fromarray(np.full((4, 6), 204, np.uint8)).save(tmp_path / "confidence" / "a.png")
    label, confidence = labels_of(open_labels(tmp_path), size=(8, 12))
    assert label[2].tolist() == [0] * 6 + [2] * 6
    assert confidence[2].tolist() == pytest.approx([0.8] * 12, abs=1e-3)
    assert (confidence[0] == 0).all()


def test_a_path_below_the_root_comes_before_the_name(tmp_path):
    folder = tmp_path / "labels"
    (folder / "images").mkdir(parents=True)
    np.save(folder / "a.npy", halves())
    np.save(folder / "images" / "a.npy", halves()[::-1])
    assert labels_of(open_labels(folder))[0][0, 0] == 2


def test_what_is_missing_is_counted_and_named(tmp_path):
    np.save(tmp_path / "a.npy", halves())
    with pytest.raises(
        DataError, match=r"no labels for 2 of 3 images \(b.jpg, c.jpg\); looked for soft/b.npz"
    ):
        open_labels(tmp_path, ("a", "b", "c"))
    with pytest.raises(DataError, match="is no folder"):
        open_labels(tmp_path / "nowhere")


def test_one_file_for_two_images_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", halves())
    images = [tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.jpg"]
    with pytest.raises(DataError, match="several images of one name"):
        SoftLabels(tmp_path, images, CLASSES, tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["tree", "sky", "car"], "another order: class 0 is 'tree' there and 'sky' here"),
        (["sky", "tree"], "has the classes sky, tree; this run has sky, tree, car"),
    ],
)
def test_class_names_are_compared(tmp_path, names, message):
    write_soft_labels(tmp_path / "a.npz", halves(), names)
    with pytest.raises(DataError, match=message):
        labels_of(open_labels(tmp_path))
    np.save(tmp_path / "a.npy", halves())
    (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
    with pytest.raises(DataError, match=message):
        open_labels(tmp_path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (halves()[:2], r"shape \(2, 4, 6\); expected \(3, height, width\)"),
        (halves(40, 80), "40x80 .*its image 40x60"),
        (halves() * 7 - 1, "expected probabilities"),
        (halves().astype(np.int32), "holds int32 values"),
        (np.array([{}], dtype=object), "cannot be read"),
    ],
    ids=["classes", "size", "range", "type", "pickle"],
)
def test_what_does_not_fit_is_said(tmp_path, array, message):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=message):
        labels_of(open_labels(tmp_path), size=(40, 60))


def test_a_fixed_working_size_may_change_the_ratio(tmp_path):
    np.save(tmp_path / "a.npy", halves())
    assert labels_of(open_labels(tmp_path, any_ratio=True), size=(6, 6))[0].shape == (6, 6)


def test_a_cut_file_and_a_coloured_mask(tmp_path):
    write_soft_labels(tmp_path / "a.npz", halves(), CLASSES)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        labels_of(open_labels(tmp_path))
    (tmp_path / "a.npz").unlink()
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has mode RGB; expected class ids"):
        labels_of(open_labels(tmp_path))


def test_the_fingerprint_follows_the_files(tmp_path):
    write_soft_labels(tmp_path / "a.npz", halves(), CLASSES)
    before = open_labels(tmp_path).fingerprint()
    assert open_labels(tmp_path).fingerprint() == before
    np.savez(tmp_path / "a.npz", probs=halves().astype(np.float64))
    assert open_labels(tmp_path).fingerprint() != before
