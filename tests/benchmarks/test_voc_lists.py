"""Lists for settings: balanced, repeatable, and never those of the figures."""

import numpy as np
import pytest
from PIL import Image

from benchmarks.voc_lists import OUT, choose, main

# 30 images with the background, ten with class 1, three with class 2, one with class 3
PRESENT = [frozenset({0} | ({1} if i % 3 == 0 else set()) | ({2} if i in (4, 9, 20) else set())
                     | ({3} if i == 11 else set())) for i in range(30)]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_shown_often_enough(seed):
    chosen = choose(PRESENT, 9, 3, seed)
    assert len(set(chosen)) == 9
    assert {4, 9, 11, 20} <= set(chosen), "all of those that are rarer than asked for"
    assert sum(1 in PRESENT[index] for index in chosen) >= 3
    assert chosen == choose(PRESENT, 9, 3, seed)


def test_seeds_differ_and_too_few_images_are_refused():
    assert len({tuple(choose(PRESENT, 9, 3, seed)) for seed in range(5)}) > 1
    with pytest.raises(ValueError, match="31 labelled images were asked for, there are 30"):
        choose(PRESENT, 31, 3, 0)
    with pytest.raises(ValueError, match="images of each class take"):
        choose(PRESENT, 4, 3, 0)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "voc"
    (folder / "masks").mkdir(parents=True)
    (folder / "splits" / "92" / "seed0").mkdir(parents=True)
    for index, classes in enumerate(PRESENT):
        mask = np.array([[*classes, 255]], np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{index}.png")
    pairs = [f"images/{index}.jpg masks/{index}.png" for index in range(30)]
    (folder / "splits" / "train.txt").write_text("\n".join(pairs) + "\n")
    lists = folder / "splits" / "92" / "seed0"
    (lists / "labeled.txt").write_text("\n".join(pairs[:5]) + "\n")
    rest = [pair.split()[0] for pair in pairs[5:]] + ["images/extra.jpg"]
    (lists / "unlabeled.txt").write_text("\n".join(rest) + "\n")
    return folder


def test_command(root, tmp_path, capsys):
    arguments = ["--root", str(root), "--count", "9", "--seeds", "3", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    labeled = (tmp_path / "out" / "9" / "seed3" / "labeled.txt").read_text().splitlines()
    unlabeled = (tmp_path / "out" / "9" / "seed3" / "unlabeled.txt").read_text().splitlines()
    assert (len(labeled), len(unlabeled)) == (9, 22)
    assert not {line.split()[0] for line in labeled} & set(unlabeled)
    assert main(arguments) == 0
    assert "unchanged" in capsys.readouterr().out
    (tmp_path / "out" / "9" / "seed3" / "labeled.txt").write_text("images/1.jpg masks/1.png\n")
    assert main(arguments) == 1
    assert "holds other images" in capsys.readouterr().err
    assert main([*arguments, "--seeds", "2"]) == 1
    assert "for figures only" in capsys.readouterr().err


def test_the_lists_in_use_are_whole():
    for seed in (3, 4):
        folder = OUT / "92" / f"seed{seed}"
        labeled = (folder / "labeled.txt").read_text().splitlines()
        unlabeled = (folder / "unlabeled.txt").read_text().splitlines()
        names = {line.split()[0] for line in labeled}
        assert (len(names), len(set(unlabeled))) == (92, 946)
        assert not names & set(unlabeled)
