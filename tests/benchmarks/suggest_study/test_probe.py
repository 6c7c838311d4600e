"""The linear classifier finds what can be told apart, and says where it is in doubt."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.suggest_study.probe import Cells, fit, space_of

STRIDE, CLASSES, LAST = 16, 3, 5


def drawn(seed, shown=(0, 1), noise=0.05):
    """Cells whose class is a direction of the feature, 4 x 6 of them."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(shown, (4, 6))
    shares = F.one_hot(torch.from_numpy(ids), CLASSES).permute(2, 0, 1).float()
    directions = torch.eye(CLASSES, 7)
    features = torch.einsum("cyx,cd->dyx", shares, directions)
    features = features + noise * torch.from_numpy(rng.normal(size=features.shape)).float()
    target = np.kron(ids, np.ones((4, 4))).astype(np.uint8)
    return Cells(features, shares, target, np.bincount(ids.ravel(), minlength=CLASSES) * STRIDE**2)


@pytest.fixture(scope="module")
def images():
    return [drawn(seed) for seed in range(4)]


def test_fit_tells_classes_apart_and_leaves_out_those_without_a_label(images):
    space = space_of(images, LAST)
    probe = fit(images[:2], space, 0)
    inside = probe.logits(images[3]).argmax(0)
    assert torch.equal(inside, images[3].shares.argmax(0))
    confusion = probe.confusion(images[2:])
    assert confusion.sum() == 2 * 16 * 24
    assert confusion[:, 2].sum() == 0
    assert probe.active.tolist() == [True, True, False]
    again = fit(images[:2], space, 0)
    assert torch.equal(again.weight, probe.weight)


def test_looks_tell_what_was_never_labelled(images):
    space = space_of(images, LAST)
    probe = fit(images[:2], space, 0)
    looks = probe.looks([images[3], drawn(9, shown=(2,)), drawn(8, shown=(1,))])
    assert looks.scores["far"].argmax() == 1
    assert looks.scores["novelty"].argmax() == 1
    assert looks.classes[2].tolist() == [0, 1, 0]
    assert looks.classes.sum(1) == pytest.approx([1, 1, 1])
    assert looks.doubts.sum(1) == pytest.approx(looks.scores["linear"], rel=1e-4)
    assert np.linalg.norm(looks.prototypes, axis=1) == pytest.approx([1, 1, 1], rel=1e-4)
    assert looks.take([1]).scores["far"] == looks.scores["far"][1]
