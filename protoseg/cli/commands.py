"""The commands by name, in the order of the way from data to a service."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command, named so that the table is read without importing any."""

    name: str
    module: str
    """Module with ``main(argv) -> exit code``."""
    summary: str
    group: str

    @property
    def own_name(self) -> str:
        """How its parser ends its name when it is run by itself."""
        return f"-m {self.module.removesuffix('.__main__')}"


_GROUPS = {
    "data": [
        ("convert", "protoseg.convert.__main__", "an annotation tool's export -> masks and lists"),
        ("init", "protoseg.init.__main__", "a folder of images and masks -> a commented my.yaml"),
        ("check", "protoseg.check.__main__", "look for faults in images, masks, lists and settings"),
        ("split", "protoseg.split.__main__", "a fully labelled set -> labelled, unlabelled and val lists"),
        ("scenes", "protoseg.data.synthetic", "write the embedded images to a folder, to try things on"),
    ],
    "training": [
        ("train", "protoseg.cli.train", "images and a few masks -> a checkpoint in runs/NAME"),
        ("evaluate", "protoseg.evaluate.__main__", "measure a checkpoint: IoU by class, calibration, ..."),
        ("predict", "protoseg.cli.predict", "masks of images, and maps of where they may be wrong"),
        ("suggest", "protoseg.suggest.__main__", "which images to label next"),
        ("adapt", "protoseg.adapt.__main__", "add, mend, merge, remove or rename a class, without training"),
        ("explain", "protoseg.explain.__main__", "the training patches that each prototype stands for"),
        ("novelty", "protoseg.novelty.__main__", "tell pixels that are unlike everything labelled"),
    ],
    "export": [
        ("export", "export.onnx", "a checkpoint -> a proven ONNX bundle in runs/NAME/bundle"),
        ("tensorrt", "export.tensorrt", "build a TensorRT engine into a bundle"),
        ("parity", "export.parity", "prove a bundle again, on this machine"),
        ("inspect", "export.inspect", "what a bundle holds, and what runs here"),
    ],
    "sharing": [
        ("card", "protoseg.share.card", "write a model card: README.md in the folder of a run or bundle"),
        ("push", "protoseg.share.push", "upload checkpoint, bundle and card to hf://user/name"),
    ],
    "service": [
        ("serve", "serving.serve", "answer HTTP requests from a bundle"),
        ("label-studio-backend", "serving.label_studio.__main__", "predictions for Label Studio"),
    ],
    "shell": [
        ("completion", "protoseg.cli.completion", "print the completion of these commands for a shell"),
    ],
}  # fmt: skip

COMMANDS = {
    name: Command(name, module, summary, group)
    for group, rows in _GROUPS.items()
    for name, module, summary in rows
}
