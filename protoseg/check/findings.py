"""What the doctor found: problems by kind, and facts about the data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from protoseg.data.lists import EntryList, Split

Level = Literal["error", "warning"]

TITLES = {
    "settings": "settings that do not fit",
    "missing": "list entries without their files",
    "list": "remarks about lists",
    "unreadable-image": "images that cannot be read",
    "unreadable-mask": "masks that cannot be read",
    "size-mismatch": "masks whose size differs from the image's",
    "mask-values": "masks with values that no class has",
    "two-value": "masks of 0 and 255 without a label map",
    "no-labels": "splits without a labelled pixel",
    "one-class": "labels of a single class",
    "orientation": "images that are turned by their EXIF tag otherwise than their masks",
    "value-range": "ranges of values",
    "all-ignored": "labelled images without a labelled pixel",
    "empty-class": "classes without a labelled pixel",
    "overlap": "images that are in two splits",
    "duplicate": "images that are twice in one split",
    "crop": "images smaller than the training crop",
    "small-crop": "images much larger than the training crop",
    "random-weights": "training would start from random weights",
}


@dataclass
class Problem:
    """All findings of one kind."""

    kind: str
    level: Level
    examples: list[str] = field(default_factory=list)
    cure: str = ""
    """What to do about all of them."""

    @property
    def count(self) -> int:
        """Findings."""
        return len(self.examples)


@dataclass
class Report:
    """Result of ``inspect``; ``facts`` is JSON-ready."""

    problems: dict[str, Problem] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    lists: dict[Split, EntryList] = field(default_factory=dict)
    """The lists that were read: there may be millions of lines, which need not be read again."""

    def add(self, kind: str, text: str, level: Level = "error") -> None:
        """Note a finding; the worst level of its kind counts."""
        problem = self.problems.setdefault(kind, Problem(kind, level))
        problem.examples.append(text)
        if level == "error":
            problem.level = "error"

    def cure(self, kind: str, text: str) -> None:
        """Say what to do about all findings of a kind that was noted."""
        self.problems[kind].cure = text

    @property
    def ok(self) -> bool:
        """No errors; there may be warnings."""
        return all(problem.level != "error" for problem in self.problems.values())

    @property
    def errors(self) -> list[Problem]:
        """Problems that stop a training."""
        return [p for p in self.problems.values() if p.level == "error"]

    @property
    def warnings(self) -> list[Problem]:
        """Problems that a training survives."""
        return [p for p in self.problems.values() if p.level == "warning"]

    def to_json(self) -> dict[str, Any]:
        """Every finding and fact."""
        return {
            "ok": self.ok,
            "problems": [
                {"kind": p.kind, "level": p.level, "count": p.count, "examples": p.examples, "cure": p.cure}
                for p in self.problems.values()
            ],
            **self.facts,
        }

    def problem_lines(self, limit: int = 10) -> list[str]:
        """Problems as text, errors first, at most ``limit`` examples of a kind."""
        lines: list[str] = []
        for problem in [*self.errors, *self.warnings]:
            lines.append(f"{problem.level.upper()}: {TITLES[problem.kind]} ({problem.count})")
            lines += [f"  {text}" for text in problem.examples[:limit]]
            if problem.count > limit:
                lines.append(f"  ... and {problem.count - limit} more")
            if problem.cure:
                lines.append(f"  what to do: {problem.cure}")
        return lines

    def fact_lines(self) -> list[str]:
        """Facts as text."""
        lines: list[str] = []
        for split, item in self.facts.get("splits", {}).items():
            known = f", the published list {item['known_name']}" if item["known_name"] else ""
            digest = f", hash {item['sha256'][:12]}" if item["sha256"] else ""
            lines.append(f"{split:<10} {item['images']:>6} images  ({item['family']}{digest}{known})")
        sizes = self.facts.get("image_sizes", {})
        if sizes:
            shown = [f"{size} ({count})" for size, count in list(sizes.items())[:8]]
            more = f" and {len(sizes) - 8} more sizes" if len(sizes) > 8 else ""
            lines.append(f"image sizes (width x height): {', '.join(shown)}{more}")
        if self.facts.get("values"):
            lines.append(f"values: {self.facts['values']}")
        shares = self.facts.get("class_shares", {})
        if shares:
            lines.append("class                     labeled pixels       val pixels")
            for name, row in shares.items():
                lines.append(f"  {name:<22} {_percent(row['labeled'])} {_percent(row['val'])}")
        for key, value in self.facts.get("training", {}).items():
            lines.append(f"{key.replace('_', ' ')}: {value}")
        memory = self.facts.get("memory", {})
        if memory:
            lines.append("memory of a training process (estimate):")
            lines += [f"  {key}: {value}" for key, value in memory.items()]
        return lines


def _percent(share: float | None) -> str:
    return f"{'-':>16}" if share is None else f"{100 * share:>15.3f}%"
