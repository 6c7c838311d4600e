"""What a training would stop at beside its data: encoder, weights, what it starts from, and its length."""

from __future__ import annotations

from protoseg.check.findings import Report
from protoseg.config.plan import make_schedule
from protoseg.config.sections import Config
from protoseg.errors import UserError
from protoseg.manifest import ClassInfo
from protoseg.models.encoders import check_encoder, normalization
from protoseg.models.segmenter import Segmenter, build_segmenter
from protoseg.start_from import start_from_checkpoint


def check_training(
    config: Config,
    classes: list[ClassInfo],
    images: tuple[int, int],
    processes: int,
    report: Report,
    *,
    quick: bool,
) -> Segmenter | None:
    """Note what a training would refuse.

    Args:
        config: The run's configuration.
        classes: Its classes.
        images: Labelled and unlabelled images.
        processes: Processes that it will have.
        report: Takes the findings.
        quick: Only whether encoder and weights are there; otherwise the network is built and weights are
            loaded, but those of timm's hub, which may have to be downloaded.

    Returns:
        The network, if it was built.
    """
    model, start, data = config.model, config.train.start_from, config.data
    # weights of the encoder are not looked for only to be written over
    pretrained = "none" if start else model.pretrained
    segmenter: Segmenter | None = None
    try:
        check_encoder(model.encoder, pretrained)
        if not quick:
            mean, std = normalization(model.encoder, model.pretrained, data.in_channels)
            mean, std = data.mean or mean, data.std or std
            segmenter = build_segmenter(
                model.model_copy(update={"pretrained": "none" if pretrained == "timm" else pretrained}),
                config.prototypes, num_classes=len(classes), in_channels=data.in_channels, mean=mean, std=std,
            )  # fmt: skip
            if start:
                start_from_checkpoint(start, segmenter.network, classes, mean, std)
    except UserError as error:
        report.add("settings", str(error))
    if not quick and all(images[: 1 + config.method.unlabeled]):
        try:
            make_schedule(config, *images, processes)
        except UserError as error:
            report.add("settings", str(error))
    return segmenter
