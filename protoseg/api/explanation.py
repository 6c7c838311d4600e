"""Why a pixel has its class, as a result says it. Torch-free: the client gives it too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from protoseg.api.notebook import encode
from protoseg.explain.atlas import Patch, Prototype


@dataclass(frozen=True, eq=False)
class Explanation:
    """Why one pixel has its class: the prototype that it resembles most, and what that stands for."""

    x: int
    """Column of the pixel, as in ``Result.labels``."""
    y: int
    """Its row."""
    id: int
    """Its class id: what the model's head says."""
    name: str
    """Name of its class."""
    prototype: Prototype
    """The nearest prototype: ``index``, ``class_id``, ``number`` among its class's, ``use_share`` and
    ``precision`` in [0, 1], and ``doubts``, the reasons why its name may not be trusted."""
    prototype_class: str
    """Name of the prototype's class: what the pixel resembles, which need not be ``name``."""
    similarity: float
    """Cosine of the pixel's feature and the prototype, in [-1, 1]."""
    runner_up: str | None
    """The class that it resembles next; None: no other class has prototypes."""
    runner_up_similarity: float | None
    """Cosine with the nearest prototype of that class."""
    load_thumbnails: Callable[[], Sequence[Image.Image]] = field(repr=False)
    """Gives the patches as pictures."""
    draw: Callable[[], Image.Image] = field(repr=False)
    """Draws the picture."""

    def __repr__(self) -> str:
        second = f"; then {self.runner_up} {self.runner_up_similarity:.2f}" if self.runner_up else ""
        doubts = f"; doubtful: {', '.join(self.prototype.doubts)}" if self.prototype.doubts else ""
        return (
            f"<Explanation of x={self.x}, y={self.y}: {self.name}; resembles {self.prototype_class} "
            f"{self.prototype.number}, cosine {self.similarity:.2f}{second}{doubts}>"
        )

    @property
    def patches(self) -> list[Patch]:
        """The training patches nearest to the prototype, the most similar first.

        Each has ``image``, ``y``, ``x``, ``box``, ``cosine`` and ``label``.
        """
        return self.prototype.patches

    def thumbnails(self) -> list[Image.Image]:
        """The patches as small RGB pictures, in their order.

        Raises:
            DataError: If they have gone meanwhile.
        """
        return list(self.load_thumbnails())

    def to_pil(self) -> Image.Image:
        """A picture: the image and its classes with the pixel marked, and three of the patches.

        Raises:
            DataError: If image or patches have gone meanwhile.
        """
        return self.draw()

    def _repr_png_(self) -> bytes:
        """The picture for a notebook."""
        return encode(self.to_pil(), "PNG")
