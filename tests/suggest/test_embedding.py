import numpy as np
import pytest
import torch
from tiny import photo, tiny_segmenter

from protoseg.inference import inference
from protoseg.suggest.embedding import look, mean_feature, prototype_shares


def test_prototype_shares_by_hand():
    cosine = torch.tensor([[[1.0, 0.5]], [[0.0, 0.5]], [[9.0, 9.0]]])[:, None]
    found = prototype_shares(cosine, torch.tensor([True, True, False]), temperature=0.5)
    first = 1 / (1 + np.exp(-2))
    np.testing.assert_allclose(found, np.sqrt([(first + 0.5) / 2, (1 - first + 0.5) / 2, 0]), atol=1e-6)
    assert found @ found == pytest.approx(1)


def test_mean_feature_by_hand():
    features = torch.tensor([[[2.0, 0.0]], [[0.0, 5.0]]])
    np.testing.assert_allclose(mean_feature(features), [np.sqrt(0.5)] * 2, atol=1e-6)


def test_one_pass_gives_what_the_segmenter_gives():
    segmenter = tiny_segmenter(num_classes=3)
    image = torch.from_numpy(photo(0)).permute(2, 0, 1)[None]
    with inference(segmenter):
        found, expected = look(segmenter, image), segmenter(image)
        padded = look(segmenter, torch.nn.functional.pad(image, (0, 16, 0, 24)))
    torch.testing.assert_close(found.logits.linear, expected.linear_logits)
    torch.testing.assert_close(found.logits.prototype, expected.prototype_logits)
    assert found.embedding.shape == (3 * 2,)
    assert not np.allclose(found.embedding, padded.embedding), (
        "the border that an image is padded by is no image"
    )
    assert np.linalg.norm(found.encoder) == pytest.approx(1, abs=1e-5)
    assert not segmenter.network.gives_stage, "as it was before"
    segmenter.bank.active.fill_(False)
    with inference(segmenter):
        bare = look(segmenter, image)
    assert bare.logits.prototype is None
    assert bare.embedding.shape == (segmenter.network.feature_dim,)
    assert np.linalg.norm(bare.embedding) == pytest.approx(1, abs=1e-5)
