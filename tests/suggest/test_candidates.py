import pytest
from file_lists import pool_list

from protoseg.config.data import DataConfig
from protoseg.errors import DataError
from protoseg.suggest.candidates import collect


@pytest.fixture
def listed(tmp_path):
    return pool_list(tmp_path)


def test_the_training_root_is_tried_last(listed, tmp_path):
    data = DataConfig(kind="files", root=str(tmp_path), labeled="x", val="x", classes=["a", "b"])
    found, _ = collect([listed], out=tmp_path / "out", root=None, data=data)
    assert [item.name for item in found] == ["images/a.png", "images/c d.png"]
    with pytest.raises(DataError, match="--root"):
        collect([listed], out=tmp_path / "out", root=tmp_path / "lists", data=data)


def test_each_file_counts_once_under_its_first_name(listed, tmp_path):
    found, _ = collect(
        [tmp_path / "images" / "b.png", listed, tmp_path / "images"],
        out=tmp_path,
        root=tmp_path,
        data=DataConfig(),
    )
    folder = (tmp_path / "images").as_posix()
    assert [item.name for item in found] == [f"{folder}/b.png", "images/a.png", "images/c d.png"]
