"""The graphs of a served bundle: one with all outputs, and one that answers what needs fewer."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from export.errors import ExportError
from export.runners.contract import Runner
from export.runners.ort import Provider, load_runner
from serving.errors import BundleError
from serving.model.bundle import Bundle
from serving.settings import Settings

# the output on the wire: the linear head's probability of the label that the bundle's head gives a pixel
LABEL_PROBABILITY = "agreement"


class Network:
    """A graph with all outputs and, on a CPU, a graph cut from it.

    ONNX Runtime computes every node of a graph, also those behind outputs that nobody asked for.

    Args:
        full: The graph with all outputs.
        cut: The same network with fewer of them, or None.
    """

    def __init__(self, full: Runner, cut: Runner | None = None) -> None:
        self.outputs = tuple(item.name for item in full.outputs)
        self.cut_outputs = frozenset(item.name for item in cut.outputs) if cut else frozenset[str]()
        self.description = full.description
        self.on_gpu = full.provider != "cpu"
        self._full = full
        self._cut = cut

    def __call__(self, batch: NDArray[Any], names: frozenset[str]) -> dict[str, NDArray[Any]]:
        """Run a batch; gives at least the outputs ``names``."""
        if self._cut is not None and names <= self.cut_outputs:
            return self._cut(batch)
        return self._full(batch)

    def close(self) -> None:
        """Free the graphs."""
        self._full.close()
        if self._cut is not None:
            self._cut.close()


def open_network(bundle: Bundle, settings: Settings) -> Network:
    """Load the files of a checked bundle as the settings ask.

    Raises:
        BundleError: If they cannot run here as asked.
    """
    provider: Provider = settings.device
    if bundle.artifact.kind != "onnx":
        provider = "tensorrt"
    elif bundle.artifact.precision == "int8-cpu":
        provider = "cpu"
    threads = settings.intra_threads
    try:
        full = load_runner(bundle.folder, bundle.artifact.name, provider, intra_threads=threads)
        # on a GPU the other outputs cost little and the weights' memory counts
        if bundle.cut is None or full.provider != "cpu":
            return Network(full)
        return Network(full, load_runner(bundle.folder, bundle.cut.name, "cpu", intra_threads=threads))
    except (ExportError, ImportError, ValueError, OSError) as error:
        raise BundleError(" ".join(str(error).split())) from error
