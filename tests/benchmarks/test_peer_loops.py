"""The peers' loops: what they compute is what ours computes, in another order."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch
from tiny import tiny_segmenter

from benchmarks.peer_loops import EMA, LOOPS, PeerLoop
from benchmarks.train_step import peers_table
from protoseg.method.teacher import make_teacher, update_teacher
from protoseg.processes import ALONE


def make_run(network):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    accelerator = SimpleNamespace(autocast=nullcontext, backward=lambda loss: loss.backward())
    return SimpleNamespace(
        networks=SimpleNamespace(network=network), method=SimpleNamespace(ignore_index=255),
        processes=ALONE, optimizer=optimizer, accelerator=accelerator,
    )  # fmt: skip


def test_every_loop_trains_and_its_average_is_ours():
    draw = torch.Generator().manual_seed(0)

    def image(*shape):
        return torch.randint(0, 256, (*shape, 3, 32, 32), generator=draw, dtype=torch.uint8)

    labeled = {"image": image(2), "target": torch.randint(0, 3, (2, 32, 32), generator=draw)}
    unlabeled = {"weak": image(2), "strong": image(2, 2), "valid": torch.ones(2, 32, 32, dtype=torch.bool)}
    for name, step in LOOPS.items():
        torch.manual_seed(0)
        network = tiny_segmenter().network.train()
        before = make_teacher(network)
        loop = PeerLoop(make_run(network))
        step(loop, labeled, unlabeled)
        assert any((a != b).any() for a, b in zip(network.parameters(), before.parameters(), strict=True)), (
            name
        )
        if name == "unimatch_v2":
            update_teacher(before, network, EMA)
            for ours, theirs in zip(before.parameters(), loop.teacher.parameters(), strict=True):
                torch.testing.assert_close(ours, theirs)


def test_boxes_cover_two_to_forty_percent_of_half_the_images():
    loop = PeerLoop(make_run(tiny_segmenter().network))
    shares = loop.boxes(400, 64, 64).float().mean((1, 2))
    covered = shares[shares > 0]
    assert 150 < len(covered) < 250
    assert covered.min() > 0.01
    assert covered.max() < 0.42


def test_the_table_names_the_loop_that_a_method_is_compared_with():
    def case(ms, ratio):
        spread = {"median": ratio, "min": ratio - 0.1, "max": ratio + 0.1}
        return {"with_data_ms": {"median": ms}, "with_data_ratio": spread}

    cases = {"peer: u2pl": case(300.0, 1.0), "now": case(200.0, 1.5), "bf16": case(100.0, 3.0)}
    table = peers_table({"presets": {"fixmatch": cases}})
    assert "| fixmatch | loop of u2pl | 300 |  |" in table
    assert "| fixmatch | ours | 200 | 1.50 (1.40 to 1.60) |" in table
    assert "| fixmatch | ours, bf16 | 100 | 3.00 (2.90 to 3.10) |" in table
