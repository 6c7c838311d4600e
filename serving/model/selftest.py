"""The self test of a model: it runs, and it gives its samples the labels that torch gave them."""

from __future__ import annotations

import numpy as np

from export.proof.samples import read_labels, read_pixels
from serving.errors import BundleError
from serving.model.bundle import Bundle
from serving.model.model import Model
from serving.pixels.decode import Pixels
from serving.pixels.maps import Labels

# labels of a sample may differ at ties between runtimes and precisions, and nowhere else
MIN_EQUAL_LABELS = {"fp32": 0.999, "fp16": 0.99, "int8": 0.95, "int8-cpu": 0.95}
MIN_EQUAL_BF16 = 0.97


def self_test(model: Model, *, fuse: bool) -> None:
    """Warm up, choose how labels are computed, and set ``model.equal_labels``.

    Args:
        model: Just opened.
        fuse: Take the argmax outside the graph where that gives every sample the same labels.

    Raises:
        BundleError: If the model does not run here or does not reproduce its samples.
    """
    bundle = model.bundle
    height, width = model.static_size or model.manifest.input.crop
    try:
        blank = np.zeros((height, width, model.manifest.input.channels), np.uint8)
        model.predict(blank, confidence=True, label_probability=True)
        samples = _read_samples(bundle)
        found = [_labels(model, image) for image, _ in samples]
        if fuse and samples and model.can_fuse:
            model.fused = True
            # a single differing pixel puts the graph's own labels back in charge
            model.fused = all(
                np.array_equal(_labels(model, image), labels)
                for (image, _), labels in zip(samples, found, strict=True)
            )
        model.network.keep_cuts_with("logits_stride" if model.fused else "labels")
        shares = [float(np.mean(mine == labels)) for mine, (_, labels) in zip(found, samples, strict=True)]
    except BundleError:
        raise
    # whatever the runtime raises, the bundle cannot be served here
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise BundleError(f"{bundle.path} does not run on {model.runtime}: {reason}") from error
    model.equal_labels = min(shares, default=1.0)
    needed = MIN_EQUAL_LABELS[bundle.artifact.precision]
    if bundle.openvino == "openvino-bf16":
        needed = min(needed, MIN_EQUAL_BF16)
    if not model.equal_labels >= needed:
        raise BundleError(
            f"{bundle.path} agrees with its samples on {model.equal_labels:.2%} of the pixels on "
            f"{model.runtime}, {needed:.2%} is needed; run python -m export.parity {bundle.folder}"
        )


def _labels(model: Model, image: Pixels) -> Labels:
    # samples have the working size already
    return model.predict_whole(image, image.shape[:2]).labels


def _read_samples(bundle: Bundle) -> list[tuple[Pixels, Labels]]:
    return [
        (read_pixels(bundle.folder / sample.image), read_labels(bundle.folder / sample.labels))
        for sample in bundle.manifest.samples
    ]
