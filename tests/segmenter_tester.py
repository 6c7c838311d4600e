"""What every architecture must do; its own test file names it and says what is special about it."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_config, tiny_info

from export.graph.trace import ExportSettings
from export.onnx import export_bundle
from protoseg.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from protoseg.config.sections import Config
from protoseg.errors import ExportError
from protoseg.manifest import ParityReport
from protoseg.models.segmenter import Segmenter, build_segmenter

NUM_CLASSES = 3


class BaseSegmenterTester:
    """Both heads of one architecture on a tiny encoder: shapes, gradients, checkpoint, export and parity."""

    architecture: ClassVar[str]
    encoder: ClassVar[str] = "test_resnet"
    decoder_channels: ClassVar[int | None] = None
    """A small number where the architecture has one."""
    any_shape: ClassVar[bool] = True
    """Whether one exported file takes images of every shape; else export needs ``--static``."""

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls) -> Config:
        model = {"architecture": cls.architecture, "encoder": cls.encoder}
        return tiny_config(model={**model, "decoder_channels": cls.decoder_channels})

    @pytest.fixture(scope="class")
    @classmethod
    def segmenter(cls, config: Config) -> Segmenter:
        """A random network with prototypes that names each class somewhere."""
        torch.manual_seed(0)
        segmenter = build_segmenter(config.model, config.prototypes, num_classes=NUM_CLASSES).eval()
        balance(segmenter)
        return segmenter

    @pytest.fixture(scope="class")
    @classmethod
    def checkpoint(
        cls, config: Config, segmenter: Segmenter, tmp_path_factory: pytest.TempPathFactory
    ) -> Checkpoint:
        """It, saved and loaded again."""
        info = tiny_info(NUM_CLASSES, **config.model.model_dump())
        rule = info.input.model_copy(update={"stride_multiple": segmenter.network.stride_multiple})
        folder = tmp_path_factory.mktemp(cls.architecture)
        save_checkpoint(folder / "checkpoint", segmenter, info.model_copy(update={"input": rule}))
        return load_checkpoint(folder)

    @pytest.mark.parametrize("size", [(64, 64), (33, 70), (5, 3)])
    def test_both_heads_score_every_pixel_of_any_size(self, segmenter, size):
        with torch.no_grad():
            output = segmenter(pictures(2, *size))
        for logits in output:
            assert logits.shape == (2, NUM_CLASSES, *size)
            assert logits.isfinite().all()

    def test_every_trained_parameter_gets_a_gradient(self, segmenter):
        """DistributedDataParallel waits for all of them."""
        student = deepcopy(segmenter).train()
        output = student(pictures(2, 64, 64))
        (output.linear_logits.square().mean() + output.prototype_logits.square().mean()).backward()
        trained = [(n, p.grad) for n, p in student.network.named_parameters() if p.requires_grad]
        assert [name for name, grad in trained if grad is None] == []
        assert all(grad.isfinite().all() for _, grad in trained)

    def test_the_loaded_network_is_the_saved_one(self, segmenter, checkpoint):
        with torch.no_grad():
            for saved, loaded in zip(segmenter(PICTURE), checkpoint.segmenter(PICTURE), strict=True):
                assert torch.equal(saved, loaded)

    @pytest.mark.slow
    def test_the_exported_file_passes_parity(self, checkpoint, tmp_path):
        if self.any_shape:
            assert exported(checkpoint, tmp_path, None).status == "passed"
            return
        with pytest.raises(ExportError, match="--static"):
            exported(checkpoint, tmp_path, None)
        assert exported(checkpoint, tmp_path, (1, 64, 96)).status == "passed"


def exported(checkpoint: Checkpoint, folder: Path, static: tuple[int, int, int] | None) -> ParityReport:
    """What parity says about the fp32 file of both heads."""
    settings = ExportSettings(head="prototype", static=static, num_calibration=1)
    return export_bundle(checkpoint, folder / "bundle", settings)[1].files[0].parity


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


PICTURE = pictures(1, 40, 48)


@torch.no_grad()
def balance(segmenter: Segmenter) -> None:
    """Give a random network labels with clear winners: without this one class would be everywhere.

    Its features are nearly parallel. Prototypes along their differences, at a right angle to their mean, tell
    them apart; the linear head is centred.
    """
    output = segmenter.network(PICTURE)
    segmenter.network.linear_head[-1].bias -= output.linear_logits.mean((0, 2, 3))
    features = output.features[0].flatten(1).T
    mean = F.normalize(features.mean(0), dim=0)
    apart = features - (features @ mean)[:, None] * mean
    picks = torch.linspace(0, len(features) - 1, NUM_CLASSES * segmenter.bank.num_prototypes).long()
    segmenter.bank.start(dict(enumerate(apart[picks].unflatten(0, (NUM_CLASSES, -1)))))
