import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from protoseg.config.data import DataConfig, SyntheticConfig, ViewConfig
from protoseg.data.sources import CachedSource, open_source
from protoseg.data.stream import StreamSampler, TrainDataset, make_stream, padding_fill
from protoseg.data.synthetic import synthetic_classes
from protoseg.errors import DataError

DATA = DataConfig(synthetic=SyntheticConfig(num_labeled=5, num_unlabeled=7, height=40, width=48))
FILL = padding_fill([0.5, 0.5, 0.5])


def dataset(stream="unlabeled", source=None, **keywords):
    classes = synthetic_classes(DATA.synthetic)
    source = source or CachedSource(open_source(DATA, stream, classes), DATA)
    views = keywords.pop("views", ViewConfig(crop=(32, 32)))
    return TrainDataset(source, views, stream, seed=3, fill=FILL, ignore_index=255, **keywords)


class Broken:
    """A source whose images 1 and 2 cannot be read."""

    sha256 = "x"

    def __len__(self):
        return 4

    def image(self, index):
        if index in (1, 2):
            raise DataError(f"broken-{index}.jpg cannot be decoded")
        return np.full((40, 40, 3), index, np.uint8)

    def mask(self, index):
        return np.zeros((40, 40 if index != 3 else 39), np.uint8)

    def name(self, index):
        return f"image-{index}.jpg"


def test_labelled_samples():
    sample = dataset("labeled")[2, 11]
    assert sample["image"].shape == (3, 32, 32)
    assert sample["image"].dtype == torch.uint8
    assert sample["target"].shape == (32, 32)
    assert sample["target"].dtype == torch.int64
    assert sample["replaced"] == 0


def test_unlabelled_samples_have_as_many_strong_views_as_asked():
    sample = dataset(views=ViewConfig(crop=(32, 32), strong_views=2))[0, 0]
    assert sample["strong"].shape == (2, 3, 32, 32)
    assert not torch.equal(sample["strong"][0], sample["strong"][1])
    assert sample["valid"].dtype == torch.bool
    assert "target" not in sample


def test_a_draw_is_a_function_of_its_position():
    first, second = dataset(), dataset()
    torch.manual_seed(0)
    one = first[3, 17]
    first[1, 4]
    torch.manual_seed(1)
    for key, value in second[3, 17].items():
        assert torch.equal(value, one[key])
    assert not torch.equal(one["strong"], first[3, 18]["strong"])


def test_padding_is_invalid_and_ignored():
    views = ViewConfig(crop=(96, 96), scale=(0.5, 0.6))
    sample = dataset(views=views)[0, 0]
    padded = ~sample["valid"]
    assert padded.any()
    assert (sample["weak"][:, padded] == 128).all()
    assert (dataset("labeled", views=views)[0, 0]["target"] == 255).sum() >= 96 * 96 // 2


def test_unreadable_image_stops_with_its_name():
    data = dataset(source=CachedSource(Broken(), DATA))
    with pytest.raises(DataError, match=r"broken-1\.jpg"):
        data[1, 0]


def test_unreadable_images_are_replaced_and_counted():
    data = dataset(source=CachedSource(Broken(), DATA), on_error="skip")
    sample = data[1, 0]
    assert sample["replaced"] == 2
    assert (sample["weak"][:, sample["valid"]] == 3).all()


def test_mask_of_another_size_is_named():
    data = dataset("labeled", source=CachedSource(Broken(), DATA))
    with pytest.raises(DataError, match=r"image-3\.jpg.*40x40.*40x39"):
        data[3, 0]


def sampler(**keywords):
    settings = {"seed": 0, "stream": "labeled", "start": 0, "stop": 12} | keywords
    return StreamSampler(
        5, keywords.pop("batch_size", 2), **{k: v for k, v in settings.items() if k != "batch_size"}
    )


def test_every_pass_shows_every_image_once_in_a_new_order():
    draws = [index for batch in sampler(stop=10) for index, _ in batch]
    passes = [draws[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(p) == [0, 1, 2, 3, 4] for p in passes)
    assert len({tuple(p) for p in passes}) > 1


def test_a_later_start_continues_the_same_stream():
    assert list(sampler(start=7)) == list(sampler())[7:]


def test_processes_split_the_global_batch():
    whole = list(sampler(batch_size=4, stop=6))
    parts = [list(sampler(stop=6, rank=r, world=2)) for r in range(2)]
    assert whole == [a + b for a, b in zip(*parts, strict=True)]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_loader_process_is_one_line(workers):
    class Source:
        source = SimpleNamespace(name=lambda index: f"image{index}.png")

        def __len__(self):
            return 4

        def image(self, index):
            raise DataError(f"image{index}.png cannot be decoded: it ends early")

    data = DATA.model_copy(update={"num_workers": workers})
    draws = StreamSampler(4, 2, seed=0, stream="unlabeled", start=0, stop=2)
    with pytest.raises(DataError) as caught:
        next(make_stream(Source(), draws, data=data, views=ViewConfig(crop=(32, 32)), mean=[0.5] * 3))
    assert re.fullmatch(r"image\d\.png cannot be decoded: it ends early", str(caught.value))
