"""Colours of classes that have none, as all eyes see them."""

import numpy as np
import pytest

from protoseg.config.data import DataConfig
from protoseg.data.classes import read_classes
from protoseg.data.palette import default_palette, voc_palette
from protoseg.draw.colours import IGNORED

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
EYES = {
    "normal": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998],
    ],
}  # fmt: skip
TO_CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]  # fmt: skip
TO_LAB = [
    [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
]  # fmt: skip
FAR_FROM = [(0, 0, 0), (255, 255, 255), *IGNORED]


def oklab(colors, eye):
    srgb = np.asarray(colors, np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(EYES[eye]), 0, 1)
    return np.cbrt(seen @ np.transpose(TO_CONES)) @ np.transpose(TO_LAB)


def distances(one, two, eye):
    return np.linalg.norm(oklab(one, eye)[:, None] - oklab(two, eye)[None], axis=-1)


@pytest.fixture(scope="module")
def table():
    return default_palette([str(number) for number in range(255)])


@pytest.mark.parametrize(
    ("eye", "least"),
    [
        ("normal", {10: 0.13, 20: 0.12, 50: 0.075, 255: 0.03}),
        ("deuteranopia", {10: 0.075, 20: 0.06, 50: 0.035, 255: 0.015}),
        ("protanopia", {10: 0.09, 20: 0.06, 50: 0.035, 255: 0.015}),
    ],
)
def test_colours_are_apart_for_all_eyes(table, eye, least):
    apart = distances(table, table, eye)
    np.fill_diagonal(apart, np.inf)
    for count, wanted in least.items():
        assert apart[:count, :count].min() >= wanted, count
    voc = distances(voc_palette(11)[1:], voc_palette(11)[1:], eye)
    np.fill_diagonal(voc, np.inf)
    assert voc.min() < least[10], "the measure tells a palette that is not made for it"


def test_none_is_black_white_or_the_hatching(table):
    light = oklab(table, "normal")[:, 0]
    assert light.min() > 0.4
    assert light.max() < 0.95
    assert distances(table, FAR_FROM, "normal").min() > 0.03


def test_the_table_is_found_again(table):
    """After Okabe and Ito's seven each colour is the farthest of a grid from those before it."""
    assert table[:2] == [(230, 159, 0), (86, 180, 233)]
    steps = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    light, a, b = oklab(grid, "normal").T
    grid = grid[(light > 0.42) & (light < 0.92) & (np.hypot(a, b) > 0.05)]
    before = [*FAR_FROM, *table]
    normal, *blind = (distances(grid, before, eye) for eye in EYES)
    blind = np.minimum(*blind)
    own_normal, *own_blind = (distances(table, before, eye) for eye in EYES)
    own_blind = np.minimum(*own_blind)
    for place in range(7, 40):
        weight, known = (1 if place < 10 else 2), len(FAR_FROM) + place
        best = np.minimum(normal, weight * blind)[:, :known].min(1).max()
        own = np.minimum(own_normal, weight * own_blind)[place, :known].min()
        assert own == pytest.approx(best, rel=1e-6), place


def test_only_a_background_is_black():
    assert default_palette(["background", "crack"]) == [(0, 0, 0), (230, 159, 0)]
    assert default_palette(["crack", "BG", "void"]) == [(230, 159, 0), (0, 0, 0), (86, 180, 233)]
    assert (0, 0, 0) not in default_palette(["wall", "floor"])


def test_given_colours_stay_and_others_keep_away():
    found = default_palette(["a", "b", "background", "c"], {"b": (225, 160, 10), "background": (9, 9, 9)})
    assert found == [(86, 180, 233), (225, 160, 10), (9, 9, 9), (0, 158, 115)]
    many = [str(number) for number in range(255)]
    assert len(set(default_palette(many, {"0": (1, 2, 3)}))) == 255


def test_embedded_classes_have_default_colours():
    classes = read_classes(DataConfig())
    assert [item.color for item in classes] == default_palette([item.name for item in classes])


def test_well_known_classes_without_colours_of_their_own_have_default_ones():
    base = {"kind": "files", "root": ".", "labeled": "l", "val": "v"}
    colors = {
        name: read_classes(DataConfig.model_validate({**base, "label_map": name}))[0].color
        for name in ("ade20k", "voc", "cityscapes")
    }
    assert colors == {"ade20k": (230, 159, 0), "voc": (0, 0, 0), "cityscapes": (128, 64, 128)}


def test_voc_palette_is_the_published_one():
    colors = voc_palette(256)
    assert colors[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert colors[15] == (192, 128, 128)
    assert colors[20] == (0, 64, 128)
    assert colors[255] == (224, 224, 192)
    assert len(set(colors)) == 256
