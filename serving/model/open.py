"""Opens the network of a bundle for serving: which file, on what, and with which outputs."""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

from export.errors import ExportError
from export.runners.contract import Runner as NetworkRunner
from export.runners.ort import OrtRunner
from export.runtime import Provider, load_runner
from serving.errors import BundleError
from serving.model.bundle import Bundle
from serving.model.prune import prune_outputs
from serving.settings import Settings


class Runner(Protocol):
    """A network that is told which outputs are wanted."""

    outputs: tuple[str, ...]
    """Outputs of the graph."""
    description: str
    """Runtime, version and provider."""
    on_gpu: bool
    """Whether it computes on a GPU."""

    def __call__(self, batch: NDArray[Any], names: frozenset[str]) -> dict[str, NDArray[Any]]:
        """Run a batch; gives at least the outputs ``names``."""
        ...

    def close(self) -> None:
        """Free the network."""
        ...


class VariantRunner:
    """A network with a lean copy for requests that need few outputs.

    Args:
        full: The network with all its outputs.
        lean: The same network cut down, or None.
    """

    def __init__(self, full: NetworkRunner, lean: NetworkRunner | None) -> None:
        self.outputs = tuple(item.name for item in full.outputs)
        self.description = full.description
        self.on_gpu = full.provider != "cpu"
        self._full = full
        self._lean = lean
        self._lean_outputs = frozenset(item.name for item in lean.outputs) if lean else frozenset()

    def __call__(self, batch: NDArray[Any], names: frozenset[str]) -> dict[str, NDArray[Any]]:
        """See ``Runner``."""
        if self._lean is not None and names <= self._lean_outputs:
            return self._lean(batch)
        return self._full(batch)

    def close(self) -> None:
        """See ``Runner``."""
        self._full.close()
        if self._lean is not None:
            self._lean.close()


def _lean_outputs(outputs: frozenset[str], fused: bool) -> frozenset[str]:
    return frozenset({"logits_stride"} if fused and "logits_stride" in outputs else {"labels"})


def open_runner(bundle: Bundle, settings: Settings) -> Runner:
    """Load the file of a checked bundle as the settings ask.

    Raises:
        BundleError: If it cannot run here as asked.
    """
    provider: Provider = settings.device
    if bundle.artifact.kind != "onnx":
        provider = "tensorrt"
    elif bundle.artifact.precision == "int8-cpu":
        provider = "cpu"
    try:
        full = load_runner(
            bundle.folder, bundle.artifact.name, provider, intra_threads=settings.intra_threads
        )
        lean = None
        outputs = frozenset(item.name for item in full.outputs)
        wanted = _lean_outputs(outputs, settings.fused)
        if full.provider == "cpu" and bundle.artifact.kind == "onnx" and outputs != wanted:
            # on a GPU the other outputs cost little and the weights' memory counts
            model = prune_outputs(bundle.path.read_bytes(), wanted)
            lean = OrtRunner(model, "cpu", intra_threads=settings.intra_threads)
    except (ExportError, ImportError, ValueError, OSError) as error:
        raise BundleError(" ".join(str(error).split())) from error
    return VariantRunner(full, lean)
