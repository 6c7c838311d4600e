import torch

from protoseg.method.pseudo_labels import (
    ClassThresholds,
    fuse,
    head_distance,
    label_probability,
    pseudo_labels,
)


def test_labels_and_confidence():
    probs = torch.tensor([[0.2, 0.7], [0.5, 0.1], [0.3, 0.2]]).view(1, 3, 1, 2)
    label, confidence = pseudo_labels(probs)
    assert label.tolist() == [[[1, 0]]]
    torch.testing.assert_close(confidence, torch.tensor([[[0.5, 0.7]]]))


def test_distance_of_heads_and_probability_of_labels_by_hand():
    linear = torch.tensor([0.7, 0.2, 0.1]).log().view(1, 3, 1, 1)
    prototype = torch.tensor([0.1, 0.6, 0.3]).log().view(1, 3, 1, 1)
    torch.testing.assert_close(head_distance(linear, prototype), torch.full((1, 1, 1), 1 - (0.1 + 0.2 + 0.1)))
    torch.testing.assert_close(head_distance(linear, linear), torch.zeros(1, 1, 1))
    for label, expected in ((0, 0.7), (2, 0.1)):
        found = label_probability(linear, torch.full((1, 1, 1), label))
        torch.testing.assert_close(found, torch.full((1, 1, 1), expected))
    torch.testing.assert_close(fuse(linear, prototype).flatten(), torch.tensor([0.4, 0.4, 0.2]))


def test_class_thresholds_by_hand():
    thresholds = ClassThresholds(3, threshold=0.8, decay=0.5)
    label = torch.tensor([[[0, 0, 1, 1]]])
    confidence = torch.tensor([[[0.9, 0.7, 0.4, 0.1]]])
    valid = torch.tensor([[[True, True, True, False]]])
    thresholds.update(label, confidence, valid)
    # class 0: mean 0.8 -> 0.5 * 1 + 0.5 * 0.8; class 1: 0.4 (padding left out); class 2 not seen
    torch.testing.assert_close(thresholds.mean, torch.tensor([0.9, 0.7, 1.0]))
    # class 0 has the highest mean that was measured and gets the whole threshold; so does class 2, of which
    # nothing is known
    torch.testing.assert_close(
        thresholds.per_pixel(torch.tensor([[[0, 1, 2]]])), 0.8 * torch.tensor([[[1.0, 0.7 / 0.9, 1.0]]])
    )
