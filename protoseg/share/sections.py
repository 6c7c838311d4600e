"""What a model card says, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from protoseg.input_rule import InputRule
from protoseg.manifest import ArtifactFile, ClassInfo, Manifest
from protoseg.share.contents import Model, shareable

if TYPE_CHECKING:
    from protoseg.checkpoint import CheckpointInfo
    from protoseg.config.model import ModelConfig

_PAPER = "[prototype-based consistency regularisation](https://arxiv.org/abs/2210.04388)"
_EMBEDDED = "embedded scenes"
_CAPTIONS = {
    "views.png": "The views that training sees",
    "curves.png": "Loss and mean IoU over the training",
    "confusion.png": "Confusion matrix",
}


@dataclass(frozen=True)
class Facts:
    """What is known of a model, from its checkpoint and its bundle."""

    name: str
    classes: list[ClassInfo]
    rule: InputRule
    metrics: dict[str, Any]
    versions: dict[str, str]
    weights_sha256: str
    git_revision: str | None
    info: CheckpointInfo | None
    manifest: Manifest | None

    @classmethod
    def of(cls, model: Model) -> Facts:
        """From what is there; the checkpoint speaks first, for it knows more."""
        info, manifest = model.info, model.manifest
        if info is not None:
            return cls(
                info.name, info.classes, info.input, info.metrics,
                {**(manifest.versions if manifest else {}), **info.versions},
                info.weights_sha256, info.git_revision, info, manifest,
            )  # fmt: skip
        assert manifest is not None
        return cls(
            manifest.name, manifest.classes, manifest.input, manifest.training_metrics, manifest.versions,
            manifest.checkpoint_sha256, manifest.git_revision, None, manifest,
        )  # fmt: skip

    @property
    def network(self) -> ModelConfig | None:
        """Network settings; a bundle does not know them."""
        return self.info.model if self.info is not None else None

    @property
    def hashes(self) -> dict[str, str]:
        """Hashes of the image lists by part."""
        return self.info.data_hashes if self.info is not None else {}

    @property
    def data_name(self) -> str:
        """What the data set is called: its folder's name."""
        if self.info is None:
            return "validation images"
        data = self.info.data
        if data.kind == "synthetic":
            return _EMBEDDED
        name = PurePosixPath(shareable("root", data.root)).name
        return name if name.strip(".") else self.name

    @property
    def semi_supervised(self) -> bool:
        """Whether unlabelled images took part; a bundle does not know."""
        return self.info is not None and self.info.method != "supervised"

    def scores(self, key: str) -> dict[str, float]:
        """A validation metric by head; shares in [0, 1]. Empty where it was not measured."""
        found = (self.metrics.get("val") or {}).get(key) or {}
        return {head: value for head, value in found.items() if value is not None}

    @property
    def head(self) -> str:
        """The head that labels by default."""
        if self.info is not None:
            return self.info.best_head()
        assert self.manifest is not None
        return self.manifest.graph.head


def sections(facts: Facts, license: str, address: str, pictures: Sequence[str]) -> str:  # noqa: A002
    """The whole text below the metadata.

    Args:
        facts: What is known.
        license: Identifier, or ``unknown``.
        address: ``hf://user/name``.
        pictures: Pictures by their path beside the card.
    """
    parts = [
        f"# {facts.name}\n\n{_summary(facts)}", _use(facts, address), _classes(facts), _pictures(pictures),
        _data(facts), _network(facts), _parity(facts), _limits(facts), _versions(facts),
        _license(facts, license),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(value: object) -> str:
    """A cell whose text cannot end it."""
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _summary(facts: Facts) -> str:
    best = facts.scores("miou").get(facts.head)
    score = f" Mean IoU on its validation images: **{100 * best:.1f} %**." if best is not None else ""
    how = f" from labelled and unlabelled images ({_PAPER})" if facts.semi_supervised else ""
    return (
        f"Semantic segmentation of images into {len(facts.classes)} classes: "
        f"{', '.join(item.name for item in facts.classes)}. Trained with protoseg{how}.{score}"
    )


_USE = """\
## How to load

```python
import protoseg

model = protoseg.load("{address}")
result = model("photo.jpg")
result.labels  # (H, W) uint8, class ids
result.save("out/")
```
"""


def _use(facts: Facts, address: str) -> str:
    lines = [_USE.format(address=address)]
    if facts.info is None:
        lines += ["This is an ONNX bundle: it runs on ONNX Runtime, without torch.", ""]
    elif facts.manifest is not None:
        lines += [f'`protoseg.load("{address}", prefer="bundle")` runs on ONNX Runtime, without torch.', ""]
    rule, resize = facts.rule, facts.rule.resize
    size = {
        "none": "at its own size",
        "fixed": f"resized to {resize.height} x {resize.width} pixels",
        "short_side": f"resized to a short side of {resize.size} pixels",
        "long_side": f"resized to a long side of {resize.size} pixels",
    }[resize.mode]
    lines.append(
        f"An image of {rule.channels} channels goes in {size}; the mask has the image's size. Training saw "
        f"crops of {rule.crop[0]} x {rule.crop[1]} pixels."
    )
    return "\n".join(lines)


def _classes(facts: Facts) -> str:
    heads = list(facts.scores("miou"))
    table = (facts.metrics.get("val") or {}).get("per_class") or {}
    if not heads:
        rows = [[i, c.name, _hex(c)] for i, c in enumerate(facts.classes)]
        return "## Classes\n\n" + _table(["id", "class", "colour"], rows) + "\n\nIt was not evaluated."
    rows = [
        [i, c.name, _hex(c), *(_percent((table.get(head) or {}).get(c.name)) for head in heads)]
        for i, c in enumerate(facts.classes)
    ]
    for key, title in (("miou", "**mean IoU**"), ("pixel_accuracy", "pixel accuracy")):
        rows.append(["", title, "", *(_percent(facts.scores(key).get(head)) for head in heads)])
    count = facts.metrics["val"].get("num_images")
    where = f" of {count} images" if count else ""
    return (
        f"## Classes and IoU\n\nPercent on the validation list{where}, by head; `{facts.head}` labels by "
        f"default. – stands for a class that no validation mask has.\n\n"
        + _table(["id", "class", "colour", *heads], rows)
    )


def _hex(item: ClassInfo) -> str:
    return "`#" + "".join(f"{channel:02x}" for channel in item.color) + "`"


def _pictures(names: Sequence[str]) -> str:
    if not names:
        return ""
    lines = ["## Pictures"]
    for name in names:
        caption = _CAPTIONS.get(name, "Validation images, their masks and what each head says")
        lines += ["", f"{caption}:", "", f"![{caption}]({name})"]
    return "\n".join(lines)


def _data(facts: Facts) -> str:
    info = facts.info
    if info is None:
        return ""
    counts = {"val": (info.metrics.get("val") or {}).get("num_images")}
    names: dict[str, Any] = {part: getattr(info.data, part) for part in ("labeled", "unlabeled", "val")}
    if info.data.kind == "synthetic":
        made = info.data.synthetic
        counts = {"labeled": made.num_labeled, "unlabeled": made.num_unlabeled, "val": made.num_val}
        names = dict.fromkeys(names, _EMBEDDED)
    rows = [
        [part, _list_name(names.get(part)), counts.get(part) or "–", f"`{digest}`"]
        for part, digest in info.data_hashes.items()
    ]
    if not rows:
        return ""
    return (
        f"## Data\n\n{facts.data_name}. Hashes are SHA-256 of the sorted names of each list's images.\n\n"
        + _table(["list", "from", "images", "hash"], rows)
    )


def _list_name(value: Any) -> str:
    """A list's or a folder's name, without where it lay."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return f"`{shareable('list', value)}`"
    return ", ".join(f"`{shareable('list', part)}`" for part in value.model_dump().values() if part)


def _network(facts: Facts) -> str:
    info, network = facts.info, facts.network
    if info is None or network is None:
        return ""
    started = {"none": "random weights", "package": "ImageNet weights", "timm": "timm's weights"}
    preset = f" (preset `{network.preset}`)" if network.preset else ""
    rows = [
        ["network", f"{network.architecture} on `{network.encoder}`{preset}"],
        ["started from", started.get(network.pretrained, f"`{shareable('file', network.pretrained)}`")],
        ["method", f"`{info.method}`"],
        ["steps", str(info.step)],
        ["prototypes", f"{info.prototypes.num_prototypes} for each class"],
    ]
    return "## Network and training\n\n" + _table(["", ""], rows)


def _parity(facts: Facts) -> str:
    if facts.manifest is None:
        return ""
    rows = [
        [f"`{item.name}`", item.precision, f"{item.size / 1e6:.1f} MB", *_measured(item)]
        for item in facts.manifest.files
    ]
    head = [
        "file",
        "precision",
        "size",
        "compared with",
        "inputs",
        "equal labels",
        "largest logit difference",
    ]
    return (
        f"## Exported files and their proof\n\nBundle `{facts.manifest.version}` "
        f"({facts.manifest.graph.head} head). Each file was run and compared, pixel for pixel, before it was "
        f"admitted; the whole report is in `bundle/manifest.json`.\n\n" + _table(head, rows)
    )


def _measured(item: ArtifactFile) -> list[str]:
    if not item.parity.cases:
        return ["–"] * 4
    case = item.parity.cases[0]
    equal = case.metrics.get("labels/agreement")
    worst = [case.metrics.get(f"{head}/max_logit_diff") for head in ("linear", "prototype")]
    known = [value for value in worst if value is not None]
    return [
        f"{case.reference}, on {case.runtime}", str(case.inputs),
        "–" if equal is None else f"{100 * equal:.3f} %", f"{max(known):.1e}" if known else "–",
    ]  # fmt: skip


def _limits(facts: Facts) -> str:
    lines = [
        "Validation images are of the same kind as those of training: on other cameras, places or subjects "
        "it may be much worse, and nothing here measures that.",
        "Every pixel gets one of the classes above, also what is none of them.",
        "`result.agreement` is low where a label is likely wrong; look there first.",
    ]
    if not facts.scores("miou"):
        lines.insert(0, "It was not evaluated.")
    per_class = ((facts.metrics.get("val") or {}).get("per_class") or {}).get(facts.head) or {}
    weak = [name for name, value in per_class.items() if value is not None and value < 0.5]
    if weak:
        lines.insert(0, f"IoU below 50 %: {', '.join(weak)}.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _versions(facts: Facts) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    revision = f"; revision `{facts.git_revision}`" if facts.git_revision else ""
    return f"## Versions\n\n{listed}{revision}. Weights: SHA-256 `{facts.weights_sha256}`."


def _license(facts: Facts, license: str) -> str:  # noqa: A002
    text = f"`{license}`."
    if license == "unknown":
        text = "Unknown: its owner has named none, so nothing says what you may do with it. Ask first."
    network = facts.network
    if network is not None and network.pretrained != "none":
        text += f" The encoder started from the weights of `{network.encoder}`, whose own licence goes on."
    return f"## Licence\n\n{text}"
