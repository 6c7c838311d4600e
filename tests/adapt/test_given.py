import numpy as np
import pytest
from PIL import Image
from tiny import photo, tiny_info

from protoseg.adapt.given import IGNORED, OF_CLASS, OTHER, choose_meaning, find_pairs, hashes, read_given
from protoseg.errors import DataError

BOX = (slice(10, 25), slice(5, 30))


@pytest.fixture
def folder(tmp_path):
    """Writes images and masks; a mask is given as values by area: everywhere, in a box, in a corner."""

    def write(*values, colors=False, count=2, size=None):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        for number in range(count):
            image = photo(number)
            Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
            everywhere, box, *corner = values
            mask = np.zeros((*image.shape[:2], 3) if colors else image.shape[:2], np.uint8)
            mask[:] = everywhere
            mask[BOX] = box
            mask[:3, :3] = corner[0] if corner else everywhere
            Image.fromarray(mask[:size]).save(tmp_path / "masks" / f"{number}.png")
        return tmp_path

    return write


def read(place, name="fox", value=None, info=None):
    info = info or tiny_info(3)
    entries = find_pairs(info.data, place / "images", place / "masks")
    meaning = choose_meaning(info, entries, name, value)
    return meaning, read_given(info, entries, meaning, name)


@pytest.mark.parametrize(
    ("values", "name", "value", "corner"),
    [
        ((0, 255), "fox", None, OTHER),  # a mask of two values
        ((0, 1), "fox", None, OTHER),
        ((0, 1, 255), "fox", None, IGNORED),
        ((2, 3, 255), "fox", None, IGNORED),  # ids of the network, and the next one
        ((0, 77), "fox", "77", OTHER),
        ((3, 77, 255), "fox", "77", IGNORED),
        ((0, 255), "class1", None, OTHER),
        ((0, 1, 255), "class1", None, IGNORED),
        ((2, 0, 1), "class0", None, OTHER),
        ((4, 200), "class1", "200", OTHER),
    ],
)
def test_meaning_is_found_where_masks_are_sure_or_told(folder, values, name, value, corner):
    meaning, given = read(folder(*values), name, value)
    assert name in meaning.text
    assert len(given) == 2
    for item in given:
        assert (item.state[BOX] == OF_CLASS).all()
        assert item.state[0, 0] == corner
        assert item.state[-1, -1] == OTHER


@pytest.mark.parametrize(
    ("values", "name"),
    [((0, 7), "fox"), ((0, 1, 2), "fox"), ((0, 2), "fox"), ((0, 1), "class2"), ((0, 255, 9), "class2")],
)
def test_a_meaning_is_never_assumed(folder, values, name):
    with pytest.raises(DataError, match=rf"none is surely {name}. Say which with --value"):
        read(folder(*values), name)


def test_colours_have_to_be_told(folder):
    place = folder((0, 0, 0), (200, 10, 10), colors=True)
    with pytest.raises(DataError, match="200,10,10"):
        read(place)
    _, given = read(place, value="200,10,10")
    assert (given[0].state[BOX] == OF_CLASS).all()
    assert given[0].of_class.sum() == 15 * 25


def test_masks_without_the_class_are_refused(folder):
    with pytest.raises(DataError, match="none of the 2 masks has a pixel of fox"):
        read(folder(0, 1), value="9")


def test_a_mask_of_another_size_is_refused(folder):
    with pytest.raises(DataError, match=r"is 40x48, its mask .* 30x48 \(height x width\)"):
        read(folder(0, 255, size=30))


def test_a_list_names_images_and_masks(folder):
    place, info = folder(0, 255), tiny_info(3)
    (place / "list.txt").write_text("images/1.png masks/1.png\n")
    entries = find_pairs(info.data, place / "list.txt", None)
    assert [entry.image.name for entry in entries] == ["1.png"]
    found = hashes(entries)["1.png"]
    assert len(found["image"]) == len(found["mask"]) == 64


def test_images_of_equal_names_are_told_apart(folder):
    place = folder(0, 255)
    (place / "more").mkdir()
    for part in ("images", "masks"):
        Image.open(place / part / "0.png").save(place / "more" / f"{part}.png")
    (place / "more" / "images.png").rename(place / "more" / "0.png")
    (place / "list.txt").write_text("images/0.png masks/0.png\nmore/0.png more/masks.png\n")
    entries = find_pairs(tiny_info(3).data, place / "list.txt", None)
    assert list(hashes(entries)) == ["images/0.png", "more/0.png"]
    assert list(hashes(entries[1:])) == ["0.png"]


def test_what_is_not_there_is_named(folder):
    place, info = folder(0, 255), tiny_info(3)
    for images, masks in (("x", None), ("x", "masks"), ("images", "x")):
        option = "--images" if images == "x" else "--masks"
        with pytest.raises(DataError, match=f"{option} .*x does not exist"):
            find_pairs(info.data, place / images, None if masks is None else place / masks)


def test_a_folder_needs_a_folder_of_masks(folder):
    place, info = folder(0, 255), tiny_info(3)
    with pytest.raises(DataError, match="--masks"):
        find_pairs(info.data, place / "images", None)
    (place / "list.txt").write_text("images/1.png masks/1.png\n")
    with pytest.raises(DataError, match="name two folders, or an image and its mask"):
        find_pairs(info.data, place / "list.txt", place / "masks")


def test_one_image_and_its_mask_are_enough(folder):
    place = folder(0, 255)
    (entry,) = find_pairs(tiny_info(3).data, place / "images" / "1.png", place / "masks" / "0.png")
    assert (entry.image.name, entry.mask) == ("1.png", place / "masks" / "0.png")
