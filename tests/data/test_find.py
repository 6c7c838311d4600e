import pytest
from file_lists import pool_list

from protoseg.data.find import find_images, read_list
from protoseg.errors import DataError


def test_find_images(tmp_path):
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "deep/c.tif",
        ".hidden/d.png",
        "masks/b.png",
        "out/masks/b.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path, tmp_path / "b.png"], tmp_path / "out")
    assert [p.path.relative_to(tmp_path).as_posix() for p in found.images] == [
        "a.JPG",
        "b.png",
        "deep/c.tif",
        "masks/b.png",
    ]
    here = find_images([tmp_path / "masks"], tmp_path)
    assert [p.path.name for p in here.images] == ["b.png"], "a folder named on the command line is searched"
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find_images([tmp_path / "gone"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in"):
        find_images([tmp_path / "empty"], tmp_path / "out")


@pytest.fixture
def listed(tmp_path):
    return pool_list(tmp_path)


def test_lists_are_read_below_the_first_root_that_fits(listed, tmp_path):
    found, problems = read_list(listed, [listed.parent, tmp_path], None)
    assert [item.name for item in found] == ["images/a.png", "images/c d.png"]
    assert [item.path for item in found] == [tmp_path / "images/a.png", tmp_path / "images/c d.png"]
    assert len(problems) == 1
    assert "line 2" in problems[0]
    assert "images/gone.png not found" in problems[0]
    with pytest.raises(DataError, match=r"name the folder .* with --root"):
        read_list(listed, [listed.parent], None)


def test_what_is_no_list_is_explained(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("x.bin", "neither an image nor a list"), ("empty.txt", "is empty")):
        with pytest.raises(DataError, match=message):
            read_list(tmp_path / name, [tmp_path], None)
