"""The search for training patches, on a network whose features are the colours of the image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tiny import tiny_info
from torch import Tensor, nn

from protoseg.data.sources import Labels, Source
from protoseg.errors import DataError
from protoseg.explain.search import NEVER_USED, OTHER_PATCHES, OTHER_PIXELS, find_patches, image_name
from protoseg.input_rule import ResizeConfig
from protoseg.models.prototypes import PrototypeBank

RED, GREEN, BLUE, GREY = (250, 0, 0), (0, 250, 0), (0, 0, 250), (90, 90, 90)


class Colours(nn.Module):
    """Cells of 4x4 pixels, padded to a multiple of 8; a cell's feature is its mean colour."""

    def padded_size(self, height: int, width: int) -> tuple[int, int]:
        return -height % 8 + height, -width % 8 + width

    def forward(self, image: Tensor) -> Any:
        height, width = self.padded_size(*image.shape[-2:])
        padded = F.pad(image.float(), (0, width - image.shape[-1], 0, height - image.shape[-2]), value=90.0)
        return SimpleNamespace(features=F.avg_pool2d(padded, 4))


class Network(nn.Module):
    """Class 0 is red or green, class 1 blue or yellow, class 2 has no prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.network = Colours()
        self.bank = PrototypeBank(3, 2, 3)
        colours = torch.tensor([[RED, GREEN], [BLUE, (250, 250, 0)]], dtype=torch.float32)
        self.bank.start({0: colours[0], 1: colours[1]})


class Pictures(Source):
    """Images in memory, some of them broken."""

    sha256 = "pictures"

    def __init__(self, items: list[tuple[NDArray[np.uint8], NDArray[np.uint8]] | None]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        return f"picture {index}"

    def _item(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        found = self.items[index]
        if found is None:
            raise DataError(f"picture {index} is broken")
        return found

    def image(self, index: int) -> NDArray[np.uint8]:
        return self._item(index)[0]

    def labels(self, index: int) -> Labels | None:
        return Labels(self._item(index)[1])

    def digest(self, index: int) -> str:
        return str(index)


def picture(*blocks: tuple[int, int, tuple[int, int, int], int], height: int = 30, width: int = 44) -> Any:
    """Grey without a class, and 8x8 blocks: top, left, colour, label."""
    image, mask = np.full((height, width, 3), GREY, np.uint8), np.full((height, width), 255, np.uint8)
    for top, left, colour, label in blocks:
        image[top : top + 8, left : left + 8] = colour
        mask[top : top + 8, left : left + 8] = label
    return image, mask


def search(items: list[Any], **options: Any) -> Any:
    info = tiny_info(3)
    info = info.model_copy(update={"input": info.input.model_copy(update=options.pop("input", {}))})
    return find_patches(Network(), info, Pictures(items), **{"num_images": 99, "patch": 8, **options})  # type: ignore[arg-type]


def test_the_nearest_place_of_each_image_with_its_label_and_box() -> None:
    found = search([
        picture((8, 16, RED, 0), (16, 4, BLUE, 1)),
        picture((0, 36, RED, 0), (20, 20, (250, 60, 0), 0)),
        picture((16, 24, (200, 90, 0), 1)),
    ])  # fmt: skip
    red = found.atlas.by_index()[0]
    assert [item.image for item in red.patches] == ["picture 0", "picture 1", "picture 2"]
    assert [item.cosine for item in red.patches[:2]] == [1.0, 1.0]
    assert red.patches[2].cosine == pytest.approx(200 / np.hypot(200, 90), abs=1e-4)
    first, second, third = red.patches
    assert (first.y, first.x) == (10, 18)  # the middle of the cell at 8..12, 16..20
    assert first.box == (6, 14, 14, 22)
    assert (first.label, third.label) == ("class0", "class1")
    assert second.box == (0, 34, 8, 42)  # a patch is moved to lie in the image
    thumbnail = np.asarray(found.thumbnails[red.strip][0])
    assert thumbnail.shape == (96, 96, 3)
    assert (thumbnail.reshape(-1, 3) == RED).all(1).mean() > 0.4
    assert {item.class_id for item in found.atlas.prototypes} == {0, 1}  # class 2 has none


def test_use_and_doubts() -> None:
    atlas = search([
        picture((0, 0, RED, 0), (0, 16, RED, 0), (16, 0, GREEN, 0), (16, 16, BLUE, 0)),
        picture((8, 8, BLUE, 0), (16, 32, GREEN, 0)),
    ]).atlas.by_index()  # fmt: skip
    red, green, blue, yellow = (atlas[index] for index in range(4))
    # four cells a block; a blue cell labelled 0 is as far from red as from green and goes to the first
    assert red.use_share == pytest.approx(16 / 24, abs=1e-4)
    assert green.use_share == pytest.approx(8 / 24, abs=1e-4)
    assert (red.precision, green.precision, blue.precision) == (1.0, 1.0, 0.0)
    assert green.doubts == []
    assert blue.doubts == [OTHER_PATCHES, OTHER_PIXELS]
    assert blue.use_share is None  # no pixel has its label
    assert yellow.precision is None
    unused = search([picture((0, 0, RED, 0), (8, 8, BLUE, 1))]).atlas.by_index()
    assert unused[1].use_share == 0.0
    assert NEVER_USED in unused[1].doubts


def test_at_most_six_of_the_most_similar_and_one_of_an_image() -> None:
    shades = [
        picture((8, 8, (250, 10 * n, 0), 0), (16, 24, (250, 10 * n, 0), 0)) for n in (5, 2, 0, 7, 1, 6, 3, 4)
    ]
    red = search(shades).atlas.by_index()[0]
    assert [item.image for item in red.patches] == [f"picture {n}" for n in (2, 4, 1, 6, 7, 0)]
    assert [item.cosine for item in red.patches] == sorted((p.cosine for p in red.patches), reverse=True)


def test_coordinates_are_those_of_the_image_itself() -> None:
    image, mask = picture((8, 16, RED, 0), height=32, width=48)
    large = (image.repeat(2, 0).repeat(3, 1), mask.repeat(2, 0).repeat(3, 1))
    resize = ResizeConfig(mode="fixed", height=32, width=48)
    patch = search([large], input={"resize": resize}).atlas.by_index()[0].patches[0]
    assert patch.cosine > 0.999
    assert 16 <= patch.y < 32
    assert 48 <= patch.x < 72
    top, left, bottom, right = patch.box
    assert (bottom - top, right - left) == (16, 24)


def test_padding_is_no_place() -> None:
    image, mask = picture(height=33, width=41)
    image[:] = BLUE
    # where the image ends the padding is grey: nearest to no blue
    found = search([(image, mask)]).atlas.by_index()[2].patches[0]
    assert found.y < 33
    assert found.x < 41
    assert found.label is None


def test_broken_images_are_passed_over_and_none_left_is_an_error() -> None:
    calls: list[int] = []
    found = search([None, picture((0, 0, RED, 0))], seen=lambda: calls.append(1))
    assert found.skipped == ["picture 0 is broken"]
    assert (found.atlas.num_images, len(calls)) == (1, 2)
    with pytest.raises(DataError, match=r"none of the 1 labelled images.*picture 0 is broken"):
        search([None])


def test_images_are_spread_over_the_list() -> None:
    items = [picture((0, 0, RED, 0)) for _ in range(9)]
    patches = search(items, num_images=3).atlas.by_index()[0].patches
    assert {item.image for item in patches} == {"picture 0", "picture 4", "picture 8"}


def test_names_are_no_paths_of_this_machine(tmp_path: Any) -> None:
    info = tiny_info(3)
    data = info.data.model_copy(update={"kind": "files", "root": str(tmp_path)})
    info = info.model_copy(update={"data": data})
    assert image_name(str(tmp_path / "images" / "a.png"), info) == "images/a.png"
    assert image_name("/elsewhere/b.png", info) == "b.png"
