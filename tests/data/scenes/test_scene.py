from __future__ import annotations

import colorsys
from itertools import product

import numpy as np
import pytest

from protoseg.config.data import SyntheticConfig
from protoseg.data.scenes.patterns import GROUNDS, TEXTURES, Dice, clip, ground, mix, noise, texture, unit
from protoseg.data.scenes.scene import OVER, look_of
from protoseg.data.scenes.solids import SOLIDS, View, shade, unit_length
from protoseg.data.synthetic import SyntheticScenes


def window(side: int = 87) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the window that solids are drawn in: right and up, in radii from the foot."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    return (x / (side - 1) - 0.5) * 3.8, 3.0 - y / (side - 1) * 4.3


def test_looks_of_a_solid_differ_and_no_texture_gives_it_away() -> None:
    looks = {(solid, mode): look_of(solid, mode) for solid, mode in product(range(7), range(4))}
    for solid in range(7):
        assert len({looks[solid, mode].texture for mode in range(4)}) == 4
        assert len({looks[solid, mode].first for mode in range(4)}) == 4
    assert len({(look.texture, look.first) for look in looks.values()}) == 28
    for name in TEXTURES:
        assert len({solid for (solid, _), look in looks.items() if look.texture == name}) > 1


def test_neighbours_on_the_colour_circle_are_other_solids() -> None:
    hues = sorted((colorsys.rgb_to_hsv(*look_of(s, m).first)[0], s) for s, m in product(range(4), range(4)))
    for (hue, solid), (following, other) in zip(hues, [*hues[1:], hues[0]], strict=True):
        assert solid != other
        assert (following - hue) % 1.0 == pytest.approx(1 / 16, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("modes", [2, 4])
def test_the_labels_show_every_look_and_ground(seed: int, modes: int) -> None:
    scenes = SyntheticScenes(SyntheticConfig(seed=seed, modes=modes), "labeled")
    pixels: dict[tuple[int, int], int] = dict.fromkeys(product(range(4), range(modes)), 0)
    grounds = set()
    for index in range(len(scenes)):
        scene = scenes.scene(index)
        scene.draw()
        grounds.add(scene.ground)
        for place, item in enumerate(scene.items, 1):
            pixels[item.solid, item.mode] += int((scene.seen == place).sum()) // OVER**2
    assert grounds == set(GROUNDS)
    assert min(pixels.values()) > 60, pixels


def test_the_first_scenes_are_of_one_session_and_the_others_of_any_hour() -> None:
    config = SyntheticConfig(num_labeled=40)
    scenes = SyntheticScenes(config, "labeled")
    means = np.array([scenes.image(index).mean((0, 1)) for index in range(40)])
    warmth = means[:, 0] / means[:, 2]
    # each kind of ground has its own colour
    same = [np.arange(12)[k::4] for k in range(4)], [np.arange(12, 40)[k::4] for k in range(4)]
    narrow, wide = (np.mean([np.log(warmth[part]).std() for part in parts]) for parts in same)
    assert wide > 1.4 * narrow
    val = SyntheticScenes(config, "val")
    lightness = [val.image(index).mean() for index in range(32)]
    assert np.std(lightness) > means[:12].mean(1).std()


def test_no_ground_goes_with_one_kind_of_solid() -> None:
    scenes = SyntheticScenes(SyntheticConfig(num_labeled=16), "labeled")
    pairs = {(scene.ground, item.solid) for scene in map(scenes.scene, range(12)) for item in scene.items}
    assert len(pairs) >= 14  # of 16


def test_dice_follow_the_stream_that_numpy_promises() -> None:
    dice = Dice([3, 0, 7])
    bits = np.random.PCG64(np.random.SeedSequence([3, 0, 7]))
    assert dice.real(2.0, 4.0) == 2.0 + 2.0 * (int(bits.random_raw()) >> 11) / 2**53
    assert dice.whole(5, 8) == 5 + 4 * (int(bits.random_raw()) >> 11) // 2**53
    assert dice.bytes(3).tolist() == list(int(bits.random_raw()).to_bytes(8, "little")[:3])


def test_dice_are_fair() -> None:
    dice = Dice([0])
    drawn = np.bincount([dice.weighted((6, 0, 3)) for _ in range(3000)])
    assert drawn[1] == 0
    assert drawn[0] / drawn[2] == pytest.approx(2, rel=0.15)
    assert {dice.whole(-1, 1) for _ in range(60)} == {-1, 0, 1}


def test_noise_meets_its_knots_and_repeats() -> None:
    knots = Dice([1]).lattice()
    i, j = np.mgrid[-3:40, -2:37].astype(np.float32)
    np.testing.assert_array_equal(noise(i, j, knots), knots[i.astype(int) % 32, j.astype(int) % 32])
    between = noise(i + np.float32(0.5), j, knots)
    mean = (
        knots[i.astype(int) % 32, j.astype(int) % 32] + knots[(i.astype(int) + 1) % 32, j.astype(int) % 32]
    ) / 2
    np.testing.assert_allclose(between, mean, atol=1e-6)


def test_everything_stays_single_precision() -> None:
    x, y = window(31)
    knots = Dice([1]).lattice()
    arrays = [mix((0.1, 0.2, 0.3), (1.0, 0.5, 0.0), x), clip(x), knots]
    arrays += [texture(name, x, y, knots) for name in TEXTURES] + [
        ground(name, x, y, knots) for name in GROUNDS
    ]
    for solid in SOLIDS.values():
        surface = solid(x, y, View(0.6, 0.8), unit(0.3), 1.0)
        arrays += [
            *surface.normal,
            surface.a,
            surface.b,
            *shade(surface, unit_length((1.0, 1.0, 1.0)), 0.3, 0.5),
        ]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}
    assert all(np.isfinite(array).all() for array in arrays)


@pytest.mark.parametrize("name", SOLIDS)
@pytest.mark.parametrize("flat", [0.3, 0.5, 0.75])
def test_solids_stand_in_their_window_with_normals_of_length_one(name: str, flat: float) -> None:
    x, y = window()
    surface = SOLIDS[name](x, y, View(flat, (1 - flat * flat) ** 0.5), unit(0.4), 1.2)
    inside = surface.inside
    assert 0.03 < inside.mean() < 0.45
    for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
        assert not edge.any()
    right, up, front = (part[inside] for part in surface.normal)
    np.testing.assert_allclose(right**2 + up**2 + front**2, 1.0, atol=2e-2)
    if name != "ring":  # whose far wall is drawn as if the near one did not hide it
        assert (front > -0.05).mean() > 0.99


def test_light_from_the_left_lights_the_left() -> None:
    x, y = window()
    surface = SOLIDS["ball"](x, y, View(0.5, 0.75), unit(0.0), 1.0)
    diffuse, mirror = shade(surface, unit_length((-1.0, 0.5, 0.5)), 0.2, 0.4)
    left, right = surface.inside & (x < -0.2), surface.inside & (x > 0.2)
    assert diffuse[left].mean() > 2 * diffuse[right].mean()
    assert mirror[left].max() > 0.3 > mirror[right].max()
