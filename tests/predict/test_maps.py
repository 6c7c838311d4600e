"""Maps made class by class are those of ``protoseg.inference.score``."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_info, tiny_segmenter

from protoseg.config.training import EvalConfig
from protoseg.data.find import find_images
from protoseg.errors import UserError
from protoseg.inference import HEADS, HeadLogits, image_logits, inference, score, upsample
from protoseg.method.pseudo_labels import label_probability
from protoseg.predict.images import predict_files
from protoseg.predict.maps import SmallLogits, label_planes, maps_of, planes_of, small_logits

IMAGE = torch.randint(0, 256, (1, 3, 37, 45), generator=torch.Generator().manual_seed(1)).byte()


@pytest.fixture(scope="module")
def segmenter():
    """A random network that sees several classes in ``IMAGE``, from how features deviate from their mean."""
    made = tiny_segmenter(num_classes=5)
    head, seen = made.network.linear_head[-1], []
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        features = made.network(IMAGE).features[0].flatten(1)
        usual = F.normalize(features.mean(1, keepdim=True), dim=0)
        off = features - usual * (usual * features).sum(0)
        made.bank.start({c: off[:, [45 * c, 45 * c + 8]].T for c in range(5)})
        head.weight *= 20
        head.bias.copy_(-(head.weight[..., 0, 0] @ seen[0].mean((0, 2, 3))))
    return made


def random_logits(whole_numbers):
    values = 4 * torch.randn(1, 7, 12, 17, generator=torch.Generator().manual_seed(0))
    # many ties, which the first class wins
    return values.round() if whole_numbers else values


@pytest.mark.parametrize("at_once", [0, 2**20], ids=["one by one", "at once"])
@pytest.mark.parametrize("whole_numbers", [False, True], ids=["any", "ties"])
def test_planes_give_the_labels_of_all_scores(at_once, whole_numbers):
    low = random_logits(whole_numbers)

    def enlarge(part):
        return upsample(HeadLogits(part, None), 48, 68).linear[..., :45, :66]

    expected = score(HeadLogits(enlarge(low), None), "linear")
    planes = planes_of(low, enlarge, at_once)
    assert isinstance(planes(), torch.Tensor) == (at_once > 0)
    label, confidence = label_planes(planes, confidence=True)
    assert label.dtype == torch.uint8
    assert torch.equal(label.long(), expected.label[0])
    torch.testing.assert_close(confidence, enlarge(low).softmax(1).amax(1)[0], rtol=0, atol=1e-6)
    assert float(confidence.max()) <= 1
    assert label_planes(planes, confidence=False)[1] is None


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("config", [EvalConfig(), EvalConfig(mode="sliding")], ids=["whole", "sliding"])
@pytest.mark.parametrize("size", [(37, 45), (61, 50)], ids=["working size", "another"])
def test_maps_are_those_of_the_logits_at_the_images_size(segmenter, head, config, size):
    with inference(segmenter):
        logits = upsample(image_logits(segmenter, IMAGE, config, (32, 32)), *size)
        expected = score(logits, head)
        small = small_logits(segmenter, IMAGE, size, head, config, (32, 32), nullcontext)
        found = maps_of(small, head, scores=True)
        alone = maps_of(small, head, scores=False)
    assert len(expected.label.unique()) > 1
    assert torch.equal(found.label.long(), expected.label[0])
    torch.testing.assert_close(found.confidence, expected.confidence[0], rtol=0, atol=1e-6)
    believed = label_probability(logits.linear, expected.label)[0]
    torch.testing.assert_close(found.label_probability, believed, rtol=0, atol=1e-6)
    assert torch.equal(alone.label, found.label)
    assert (alone.confidence, alone.label_probability) == (None, None)


def test_the_linear_head_asks_no_prototypes(segmenter, monkeypatch):
    asked = []
    dense = segmenter.bank.dense_logits
    monkeypatch.setattr(segmenter.bank, "dense_logits", lambda features: asked.append(1) or dense(features))
    with inference(segmenter):
        for head in HEADS:
            small_logits(segmenter, IMAGE, (37, 45), head, EvalConfig(), (32, 32), nullcontext)
            assert len(asked) == (0 if head == "linear" else 1), head
            asked.clear()


def test_a_head_without_prototypes_is_refused():
    small = SmallLogits(HeadLogits(random_logits(whole_numbers=False), None), lambda low: low)
    assert maps_of(small, "linear", scores=False).label.shape == (12, 17)
    with pytest.raises(UserError, match="head 'prototype' needs prototypes"):
        maps_of(small, "prototype", scores=False)


def test_probabilities_are_computed_for_their_pictures_alone(segmenter, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    asked = []
    monkeypatch.setattr(
        "protoseg.predict.images.maps_of",
        lambda *arguments, scores: asked.append(scores) or maps_of(*arguments, scores=scores),
    )
    images = find_images([tmp_path / "a.png"], tmp_path / "out").images
    masks = {}
    for parts in (["masks"], ["masks", "overlays"], ["masks", "confidence"], ["masks", "disagreement"]):
        out = tmp_path / "-".join(parts)
        assert [reason for _, reason in predict_files(segmenter, tiny_info(5), images, out, parts=parts)] == [
            None
        ]
        masks["-".join(parts)] = (out / "masks" / "a.png").read_bytes()
    assert asked == [False, False, True, True]
    assert len(set(masks.values())) == 1
