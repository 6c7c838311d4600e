"""The device's batches beside the loader's, both on the CPU."""

import logging

import numpy as np
import pytest
import torch

from protoseg.config.data import DataConfig, SyntheticConfig, ViewConfig
from protoseg.data import device_stream
from protoseg.data.device_stream import DeviceImages, free_memory, make_device_stream
from protoseg.data.sources import CachedSource, open_source
from protoseg.data.stream import StreamSampler, make_stream
from protoseg.data.synthetic import synthetic_classes
from protoseg.errors import ConfigError, DataError

DATA = DataConfig(synthetic=SyntheticConfig(num_labeled=5, num_unlabeled=7, height=40, width=48))
ON_DEVICE = DATA.model_copy(update={"cache": "device"})
CPU = torch.device("cpu")


class Pictures:
    """Images of several sizes; some cannot be read."""

    sha256 = "x"

    def __init__(self, broken=(), short_mask=None, length=6):
        self.broken, self.short_mask, self.length = broken, short_mask, length
        self.reads = []

    def __len__(self):
        return self.length

    def shape(self, index):
        return 40 + 3 * index, 64 - 5 * (index % 7)

    def image(self, index):
        self.reads.append(index)
        if index in self.broken:
            raise DataError(f"image-{index}.jpg cannot be decoded")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (*self.shape(index), 3), np.uint8)

    def mask(self, index):
        height, width = self.shape(index)
        values = np.random.default_rng([1, index]).integers(0, 5, (height, width), np.uint8)
        return values[: -1 if index == self.short_mask else None]

    def name(self, index):
        return f"image-{index}.jpg"


HOW = {
    "views": ViewConfig(crop=(32, 32), strong_views=2, labeled_jitter=True),
    "mean": [0.5, 0.4, 0.3],
}


def draws(source, stream, **changes):
    place = {"batch_size": 3, "seed": 3, "start": 0, "stop": 3} | changes
    return StreamSampler(len(source), stream=stream, **place)


def given(index, size):
    """Labels as a folder gives them."""
    return np.random.default_rng([2, index]).integers(0, 256, (3, *size), np.uint8)


def both(stream, pictures=Pictures, on_error="raise", labels=None, views=HOW["views"], **changes):
    """All batches of the loader, and all of the device."""
    data = ON_DEVICE.model_copy(update={"on_error": on_error})
    how = HOW | {"data": data, "labels": labels, "views": views}
    sources = [CachedSource(pictures(), data) for _ in range(2)]
    sampler = draws(sources[0], stream, **changes)
    ours = make_device_stream(sources[0], sampler, device=CPU, **how)
    theirs = make_stream(sources[1], sampler, **how)
    return list(theirs), list(ours)


def assert_alike(theirs, ours):
    assert len(theirs) == len(ours) > 0
    for one, two in zip(theirs, ours, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert (value.dtype, value.shape) == (two[key].dtype, two[key].shape)
            if key in ("image", "weak", "strong"):
                assert ((value.int() - two[key].int()).abs() > 1).float().mean() < 1e-4, key
            else:
                assert torch.equal(value, two[key]), key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"start": 2, "stop": 5},
        {"rank": 1, "world": 2},
        {"pick": lambda position: position * 2 % 5},
        {"views": ViewConfig(crop=(32, 32))},
        {"views": ViewConfig(crop=(96, 80), scale=(0.3, 0.9), jitter=0, gray=0, blur=0)},
    ],
    ids=["start", "later", "rank", "pick", "plain", "padding"],
)
@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
def test_batches_are_those_of_the_loader(stream, changes):
    assert_alike(*both(stream, **changes))


def test_labels_of_a_folder_come_along():
    theirs, ours = both("unlabeled", labels=given, views=ViewConfig(crop=(48, 48), scale=(0.5, 1)))
    assert ours[0]["given"].any()
    assert_alike(theirs, ours)


def test_unreadable_images_are_replaced_and_counted_alike(caplog):
    theirs, ours = both("labeled", lambda: Pictures(broken=(1, 2)), on_error="skip", stop=6)
    assert sum(int(part["replaced"].sum()) for part in ours) > 0
    assert_alike(theirs, ours)
    assert "image-2.jpg cannot be decoded" in caplog.text


def fill(pictures, stream="labeled", data=ON_DEVICE, **keywords):
    return DeviceImages(CachedSource(pictures, data), stream, CPU, **keywords)


def test_an_unreadable_image_stops_before_the_first_step():
    with pytest.raises(DataError, match=r"image-4\.jpg cannot be decoded"):
        fill(Pictures(broken=(4,)))


def test_a_mask_of_another_size_is_named():
    with pytest.raises(DataError, match=r"image-3\.jpg: the image is 49x49, its mask 48x49"):
        fill(Pictures(short_mask=3))
    fill(Pictures(short_mask=3), "unlabeled")


def test_too_many_unreadable_images_stop():
    images = fill(Pictures(broken=range(30), length=31), "unlabeled", on_error="skip")
    with pytest.raises(DataError, match=r"20 images in a row cannot be read, the last one image-20\.jpg"):
        images.instead_of(1)
    assert images.instead_of(29)[1] == 1


def test_the_host_keeps_nothing_and_the_device_one_piece(caplog):
    caplog.set_level(logging.INFO)
    pictures = Pictures()
    source = CachedSource(pictures, ON_DEVICE)
    images = DeviceImages(source, "labeled", CPU)
    assert source.kept == {}
    assert images.num_bytes == sum(4 * h * w for h, w in map(pictures.shape, range(6)))
    assert len({part.untyped_storage().data_ptr() for part in images.planes}) == 1
    assert "6 labelled images, 0 MiB on cpu" in caplog.text
    reads = len(pictures.reads)
    list(device_stream.device_batches(
        images, StreamSampler(6, 2, seed=0, stream="labeled", start=0, stop=9),
        ViewConfig(crop=(32, 32)), fill=torch.zeros(3, dtype=torch.uint8), ignore_index=255,
    ))  # fmt: skip
    assert len(pictures.reads) == reads


def test_images_that_do_not_fit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(device_stream, "free_memory", lambda device: 3 * 2**20)
    pictures = Pictures(length=1000)
    pictures.shape = lambda index: (64, 64)
    with pytest.raises(
        ConfigError, match=r"1000 labelled images need about 16 MiB, cpu has 3 MiB free; take"
    ):
        fill(pictures)
    assert len(pictures.reads) <= device_stream.TRIED


def test_a_few_large_images_are_noticed_on_the_way(monkeypatch):
    monkeypatch.setattr(device_stream, "free_memory", lambda device: 2**20)
    monkeypatch.setattr(device_stream, "CHUNK_BYTES", 1)
    pictures = Pictures(length=100)
    pictures.shape = lambda index: (900, 900) if index == 40 else (8, 8)
    with pytest.raises(ConfigError, match="need about 3 MiB, cpu has 1 MiB free"):
        fill(pictures)


def test_free_memory_of_the_host_is_known():
    assert 2**20 < free_memory(CPU) < 2**50


@pytest.mark.parametrize("stream", ["labeled", "unlabeled"])
def test_embedded_scenes(stream):
    """The same through the sources of a training."""
    classes = synthetic_classes(DATA.synthetic)
    sources = [CachedSource(open_source(data, stream, classes), data) for data in (DATA, ON_DEVICE)]
    sampler = draws(sources[0], stream)
    theirs = make_stream(sources[0], sampler, data=DATA, **HOW)
    ours = make_device_stream(sources[1], sampler, data=ON_DEVICE, device=CPU, **HOW)
    assert_alike(list(theirs), list(ours))
