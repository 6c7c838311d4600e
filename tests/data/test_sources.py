import numpy as np
import pytest

from protoseg.config.data import DataConfig, SyntheticConfig
from protoseg.data.images import save_image, save_mask
from protoseg.data.lines import Entry
from protoseg.data.masks import MaskReader
from protoseg.data.sources import CachedSource, FileSource, open_source
from protoseg.data.synthetic import synthetic_classes
from protoseg.errors import DataError

DATA = DataConfig(synthetic=SyntheticConfig(num_labeled=5, num_unlabeled=7, height=40, width=48))


def test_cache_returns_equal_images():
    classes = synthetic_classes(DATA.synthetic)
    cached = CachedSource(open_source(DATA, "labeled", classes), DATA.model_copy(update={"cache": True}))
    assert cached.image(1) is cached.image(1)
    fresh = CachedSource(open_source(DATA, "labeled", classes), DATA)
    assert np.array_equal(cached.image(1), fresh.image(1))
    assert np.array_equal(cached.mask(1), fresh.mask(1))


@pytest.fixture
def files(tmp_path):
    """An image with a good mask, one with a value 7 that has no class, and one without a mask."""
    image, mask = np.zeros((6, 8, 3), np.uint8), np.ones((6, 8), np.uint8)
    for name in "abc":
        save_image(tmp_path / f"{name}.png", image)
    save_mask(tmp_path / "mask_a.png", mask, [])
    mask[0, :3] = 7
    save_mask(tmp_path / "mask_b.png", mask, [])
    entries = [Entry(tmp_path / f"{name}.png", tmp_path / f"mask_{name}.png") for name in "ab"]
    return FileSource([*entries, Entry(tmp_path / "c.png", None)], 3, MaskReader(2, 255), "hash")


def test_masks_with_unknown_values_have_labels_for_the_doctor_and_an_error_for_the_trainer(files):
    labels = files.labels(1)
    assert labels.ids[0, :3].tolist() == [255] * 3
    assert labels.unknown == {"7": 3}
    assert "mask_b.png has value(s) without a class: 7 (3 pixels)" in labels.complaint
    with pytest.raises(DataError, match=r"mask_b\.png has value\(s\) without a class"):
        files.mask(1)
    assert files.labels(0).complaint == ""
    assert np.array_equal(files.mask(0), files.labels(0).ids)


def test_an_image_without_a_mask(files):
    assert files.labels(2) is None
    with pytest.raises(DataError, match=r"c\.png has no mask in this list"):
        files.mask(2)
    scenes = open_source(DATA, "unlabeled", synthetic_classes(DATA.synthetic))
    assert scenes.labels(0) is None


def test_equal_bytes_have_equal_digests(files, tmp_path):
    assert files.digest(0) == files.digest(2)
    (tmp_path / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png cannot be read"):
        files.digest(2)
    scenes = open_source(DATA, "val", synthetic_classes(DATA.synthetic))
    assert scenes.digest(0) != scenes.digest(1)
