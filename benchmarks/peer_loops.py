"""Training steps as others order them, on our network and our batches: what a step costs in their loops.

Restated from their repositories, not copied: the order and number of forward passes, at which size scores are
compared, how masks are mixed, what is waited for on the host, and how the average is updated. What is equal
everywhere is left out: networks, images, views, optimiser.

* ``unimatch_v2``: LiheYoung/UniMatch-V2 f6afb4d, ``unimatch_v2.py`` (MIT). Needs two strong views.
* ``u2pl``: Haochen-Wang409/U2PL ab3d2be, ``train_semi.py`` (Apache-2.0), **without its contrastive loss**,
  whose memory bank needs its own head: the whole step costs more. Needs one strong view.
* ``labels``: a loop as for segmentation_models_pytorch, labelled images alone.

Shape legend: ``B`` images, ``C`` classes, ``H W`` crop.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from protoseg.data.stream import Sample
    from protoseg.models.segmenter import SegmentationNetwork
    from protoseg.train.training import Training

TAU = 0.95
EMA = 0.996
DROP_PERCENT = 80.0
SEED = 0


class PeerLoop:
    """Steps of a peer's loop.

    Args:
        run: What is trained; its optimiser is used, its loop is not.
    """

    def __init__(self, run: Training) -> None:
        self.run, self.student = run, run.networks.network
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.ignore, self.device = run.method.ignore_index, run.processes.device
        self.rng = np.random.default_rng(SEED)
        self.seen = 0.0

    def scores(self, network: SegmentationNetwork, image: Tensor, paired: int = 0) -> Tensor:
        """(B, C, H, W) at full size, as the peers' networks end."""
        with self.run.accelerator.autocast():
            low = network(image, paired=paired).linear_logits
        return network.upsample(low.float(), *image.shape[-2:])

    def boxes(self, batch: int, height: int, width: int) -> Tensor:
        """(B, H, W) bool: a rectangle of each image with probability 1/2, 2 to 40 % of it."""
        found = np.zeros((batch, height, width), np.bool_)
        for box in found:
            if self.rng.random() < 0.5:
                continue
            area, ratio = self.rng.uniform(0.02, 0.4) * height * width, self.rng.uniform(0.3, 1 / 0.3)
            h, w = min(height, round(math.sqrt(area * ratio))), min(width, round(math.sqrt(area / ratio)))
            y, x = self.rng.integers(height - h + 1), self.rng.integers(width - w + 1)
            box[y : y + h, x : x + w] = True
        return torch.from_numpy(found).to(self.device)

    def apply(self, loss: Tensor) -> None:
        """Backward and optimiser step."""
        optimizer = self.run.optimizer
        optimizer.zero_grad()
        self.run.accelerator.backward(loss)
        optimizer.step()

    def average(self, decay: float, *, buffers: bool) -> None:
        """The moving average tensor by tensor, with what is in between written out."""
        with torch.no_grad():
            for own, mean in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                mean.copy_(mean * decay + own.detach() * (1 - decay))
            if buffers:
                for own, mean in zip(self.student.buffers(), self.teacher.buffers(), strict=True):
                    mean.copy_(mean * decay + own.detach() * (1 - decay))

    def labels(self, labeled: Sample, unlabeled: Sample | None) -> None:
        """Forward, cross entropy at full size, backward."""
        loss = F.cross_entropy(
            self.scores(self.student, labeled["image"]), labeled["target"], ignore_index=self.ignore
        )
        self.apply(loss)
        self.seen = loss.item()

    def unimatch_v2(self, labeled: Sample, unlabeled: Sample | None) -> None:
        """Teacher on B, student on B and then on 2 B; a loss for each view; six waits on the host."""
        assert unlabeled is not None
        weak, valid = unlabeled["weak"], unlabeled["valid"]
        batch, height, width = len(weak), weak.shape[-2], weak.shape[-1]
        with torch.no_grad():
            teacher = self.scores(self.teacher, weak)
            confidence, label = teacher.softmax(1).max(1)[0], teacher.argmax(1)
        views, targets = [], []
        for view in unlabeled["strong"].unbind(1):
            box, image = self.boxes(batch, height, width), view.clone()
            wide = box.unsqueeze(1).expand(image.shape)
            image[wide] = image.flip(0)[wide]
            mixed = [value.clone() for value in (label, confidence, valid)]
            for value, source in zip(mixed, (label, confidence, valid), strict=True):
                value[box] = source.flip(0)[box]
            views.append(image)
            targets.append(mixed)
        supervised = F.cross_entropy(
            self.scores(self.student, labeled["image"]), labeled["target"], ignore_index=self.ignore
        )
        losses = []
        predictions = self.scores(self.student, torch.cat(views), paired=batch).chunk(2)
        for scores, (to, sure, there) in zip(predictions, targets, strict=True):
            loss = F.cross_entropy(scores, to, reduction="none") * ((sure >= TAU) & there)
            losses.append(loss.sum() / there.sum().item())
        unsupervised = (losses[0] + losses[1]) / 2
        total = (supervised + unsupervised) / 2
        self.apply(total)
        self.seen = total.item() + supervised.item() + unsupervised.item()
        self.seen += (((confidence >= TAU) & valid).sum().item() / valid.sum()).item()
        self.average(EMA, buffers=True)

    def u2pl(self, labeled: Sample, unlabeled: Sample | None) -> None:
        """Teacher on B, student on 2 B, teacher again on 2 B in training mode; entropy sorted on the host."""
        assert unlabeled is not None
        weak, image, target = unlabeled["weak"], labeled["image"], labeled["target"]
        batch = len(image)
        with torch.no_grad():
            _, label = self.scores(self.teacher.eval(), weak).softmax(1).max(1)
        strong = unlabeled["strong"][:, 0]
        if self.rng.random() < 0.5:
            box = self.boxes(len(weak), *weak.shape[-2:])
            strong = torch.where(box.unsqueeze(1), strong.roll(1, 0), strong)
            label = torch.where(box, label.roll(1, 0), label)
        everything = torch.cat([image, strong])
        scores = self.scores(self.student, everything)
        supervised = F.cross_entropy(scores[:batch], target, ignore_index=self.ignore)
        with torch.no_grad():
            probs = self.scores(self.teacher.train(), everything)[batch:].softmax(1)
            entropy = -(probs * (probs + 1e-10).log()).sum(1)
            known = label != self.ignore
            limit = np.percentile(entropy[known].cpu().numpy().flatten(), DROP_PERCENT)
            label = torch.where((entropy >= limit) & known, self.ignore, label)
            weight = label.numel() / (label != self.ignore).sum()
        unsupervised = weight * F.cross_entropy(scores[batch:], label, ignore_index=self.ignore)
        self.apply(supervised + unsupervised)
        self.seen = supervised.item() + unsupervised.item()
        self.average(0.99, buffers=False)


LOOPS: dict[str, Callable[[PeerLoop, Sample, Sample | None], None]] = {
    "unimatch_v2": PeerLoop.unimatch_v2,
    "u2pl": PeerLoop.u2pl,
    "labels": PeerLoop.labels,
}
