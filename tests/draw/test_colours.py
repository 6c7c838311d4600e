import numpy as np
import pytest

from protoseg.draw.colours import heat_picture, overlay_picture, palette_picture, prototype_colors


def test_palette_picture_marks_ids_without_a_colour():
    labels = np.array([[0, 1], [2, 255]], np.uint8)
    picture = palette_picture(labels, [(0, 0, 0), (0, 0, 128), (0, 128, 0)])
    assert picture[0, 1].tolist() == [0, 0, 128]
    assert picture[1, 0].tolist() == [0, 128, 0]
    assert picture[1, 1].min() > 190


def test_prototype_shades_keep_the_hue_and_get_lighter():
    shades = np.array(prototype_colors((0, 128, 0), 4))
    assert (shades[:, 1] > shades[:, 0]).all()
    assert (np.diff(shades.sum(1)) > 0).all()
    grey = np.array(prototype_colors((0, 0, 0), 3))
    assert (grey[:, 0] == grey[:, 2]).all()
    assert len({tuple(c) for c in grey.tolist()}) == 3


def test_heat_gets_brighter():
    ramp = heat_picture(np.linspace(0, 1, 50, dtype=np.float32)[None])
    light = ramp[0].astype(int) @ [299, 587, 114]
    assert (np.diff(light) >= 0).all()
    assert heat_picture(np.full((1, 1), np.nan, np.float32)).shape == (1, 1, 3)


def test_overlay_by_hand():
    image = np.full((3, 4, 3), 100, np.uint8)
    labels = np.zeros((3, 4), np.uint8)
    labels[:, 2:] = 1
    blended = overlay_picture(image, labels, [(0, 0, 0), (200, 0, 50)])
    assert (blended[:, :2] == 100).all(), "black classes leave the image as it is"
    assert blended[0, 2].tolist() == [200, 0, 50], "the outline has the full colour"
    assert blended[0, 3].tolist() == [150, 50, 75]


@pytest.mark.parametrize("opacity", [0.5, 0.3, 1.0])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_overlay_is_the_mean_of_image_and_colour(opacity, channels):
    rng = np.random.default_rng(0)
    colors = [(0, 0, 0), (200, 0, 50), (7, 90, 255)]
    image = rng.integers(0, 256, (30, 40, channels), dtype=np.uint8)
    labels = np.repeat(np.repeat(rng.choice([0, 1, 2, 7, 255], (6, 8)), 5, 0), 5, 1).astype(np.uint8)
    rgb, mask = (
        np.repeat(image[..., :1], 3, 2) if channels == 1 else image[..., :3],
        palette_picture(labels, colors),
    )
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    share = np.where(np.any([other != labels for other in around], 0), 1.0, opacity)[..., None]
    share = share * mask.any(2, keepdims=True)
    expected = np.round((1 - share) * rgb + share * mask)
    assert np.array_equal(overlay_picture(image, labels, colors, opacity), expected)
