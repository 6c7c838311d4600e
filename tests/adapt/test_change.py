import numpy as np
import pytest
import torch
from tiny import photo, tiny_info, tiny_segmenter

from protoseg.adapt import change
from protoseg.adapt.cells import Cells, image_cells, joined, last_layer, reads
from protoseg.adapt.rows import Heads, read_heads, with_heads
from protoseg.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from protoseg.models.prototypes import unit


def cells_of(centre, count=200, share=1.0, seed=0, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    points = torch.tensor(centre) + noise * torch.randn(count, len(centre), generator=generator)
    return Cells(
        points, points[:, :0], points[:, :0], points.clone(), torch.full((count,), share), torch.ones(count)
    )


@pytest.fixture
def heads():
    """Two classes along the first two axes of three, two prototypes each."""
    weight = torch.tensor([[4.0, 0, 0, 0], [0, 4.0, 0, 0]])
    prototypes = unit(torch.tensor([[[1.0, 0, 0], [1, 0.2, 0]], [[0, 1.0, 0], [0.2, 1, 0]]]))
    return Heads(weight, prototypes, torch.tensor([True, True]))


def labels(heads, cells):
    return change.scores(heads, cells).argmax(1)


def test_add_finds_the_class_and_leaves_the_others(heads):
    own = joined([cells_of([0.0, 0.0, 1.0]), cells_of([1.0, 0.0, 0.0], share=0.0)])
    rest = joined(
        [cells_of([1.0, 0.0, 0.0], share=0.0, seed=1), cells_of([0.0, 1.0, 0.0], share=0.0, seed=2)]
    )
    found = change.add(heads, own, rest)
    assert torch.equal(found.weight[:2], heads.weight)
    assert torch.equal(found.prototypes[:2], heads.prototypes)
    for centre, label in (([1.0, 0, 0], 0), ([0, 1.0, 0], 1), ([0, 0, 1.0], 2)):
        fresh = cells_of(centre, seed=5)
        assert (labels(found, fresh) == label).float().mean() > 0.9
        nearest = (unit(fresh.prototype) @ found.prototypes.flatten(0, 1).t()).argmax(1) // 2
        assert (nearest == label).float().mean() > 0.97
    assert bool(found.active.all())


def test_other_images_are_what_keeps_a_new_class_from_claiming_too_much(heads):
    own = joined([cells_of([0.6, 0.0, 1.0]), cells_of([1.0, 0.0, 0.0], share=0.0)])
    like_it = cells_of([0.0, 0.8, 0.8], share=0.0, seed=3)
    alone, told = change.add(heads, own, None), change.add(heads, own, like_it)
    fresh = cells_of([0.0, 0.8, 0.8], seed=6)
    assert (labels(told, fresh) == 2).sum() < (labels(alone, fresh) == 2).sum()


def test_mend_moves_one_class(heads):
    missed = cells_of([1.0, 1.3, 0.6])
    before = (labels(heads, missed) == 0).float().mean()
    found = change.mend(heads, 0, missed, None)
    assert before < 0.1
    assert (labels(found, missed) == 0).float().mean() > 0.9
    assert torch.equal(found.weight[1], heads.weight[1])
    assert torch.equal(found.prototypes[1], heads.prototypes[1])
    moved = (found.prototypes[0] - heads.prototypes[0]).norm(dim=1) > 1e-4
    assert moved.tolist() == [False, True]  # the nearer one
    torch.testing.assert_close(found.prototypes.norm(dim=-1), torch.ones(2, 2))


def test_merge_has_the_probability_of_both():
    generator = torch.Generator().manual_seed(0)
    heads = Heads(torch.randn(4, 6, generator=generator), unit(torch.randn(4, 2, 5, generator=generator)),
                  torch.ones(4, dtype=torch.bool))  # fmt: skip
    points = torch.randn(3000, 5, generator=generator)
    cells = Cells(points, points[:, :0], points[:, :0], points, torch.zeros(3000), torch.ones(3000))
    wanted = change.scores(heads, cells).softmax(1)[:, [0, 2]].sum(1)
    found = change.merge(heads, 0, 2, cells).take([0, 1, 3])
    merged = change.scores(found, cells).softmax(1)[:, 0]
    naive = Heads(heads.weight.clone(), heads.prototypes, heads.active)
    naive.weight[0] = (heads.weight[0] + heads.weight[2]) / 2
    mean = change.scores(naive.take([0, 1, 3]), cells).softmax(1)[:, 0]
    assert (merged - wanted).abs().mean() < 0.5 * (mean - wanted).abs().mean()
    assert merged.mean() == pytest.approx(float(wanted.mean()), abs=0.01)


def test_heads_go_into_a_network_and_come_out_again():
    segmenter, info = tiny_segmenter(3), tiny_info(3)
    heads = read_heads(segmenter)
    image = torch.randint(
        0, 256, (1, 3, 40, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    assert not heads.weight[:, channels(segmenter) : -1].any()  # a training makes no use of the stages
    swapped = with_heads(segmenter, info, heads.take([2, 0]))
    assert not swapped.network.stage_heads
    with torch.no_grad():
        whole, part = segmenter(image), swapped(image)
    torch.testing.assert_close(part.linear_logits, whole.linear_logits[:, [2, 0]])
    torch.testing.assert_close(part.prototype_logits, whole.prototype_logits[:, [2, 0]])


def test_a_row_that_reads_the_encoder_adds_to_its_class_alone(tmp_path):
    segmenter, info = tiny_segmenter(3), tiny_info(3)
    heads = read_heads(segmenter)
    width = segmenter.network.row_stages[0]
    heads.weight[1, channels(segmenter) : channels(segmenter) + width] = 0.1
    heads.weight[1, channels(segmenter) + width : -1] = -0.2
    image = photo(1, 64, 64)
    changed = with_heads(segmenter, info, heads)
    batch = torch.from_numpy(image).permute(2, 0, 1)[None]
    with torch.no_grad(), reads(changed.network) as seen:
        old, new = segmenter.network(batch).linear_logits, changed.network(batch).linear_logits
    assert torch.equal(new[:, [0, 2]], old[:, [0, 2]])
    ((_, stage3, stage4),) = seen
    added = 0.1 * stage3.sum(1) - 0.2 * stage4.sum(1)
    torch.testing.assert_close(new[:, 1], old[:, 1] + added, atol=1e-4, rtol=1e-4)
    assert added.abs().max() > 0.01
    assert torch.equal(read_heads(changed).weight, heads.weight)
    save_checkpoint(tmp_path / "checkpoint", changed, info)
    again = load_checkpoint(tmp_path).segmenter
    with torch.no_grad():
        assert torch.equal(again.network(batch).linear_logits, new)
    share, valid = np.zeros((64, 64), np.float32), np.ones((64, 64), np.float32)
    cells = image_cells(Checkpoint(again, info, tmp_path), image, share, valid, 10_000)
    torch.testing.assert_close(change.scores(heads, cells), new[0].flatten(1).t(), atol=1e-4, rtol=1e-4)
    kept = with_heads(again, info, read_heads(again).take([0, 2]))
    assert not kept.network.stage_heads  # they went with their class


def channels(segmenter):
    return last_layer(segmenter.network).in_channels
