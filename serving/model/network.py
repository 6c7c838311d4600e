"""The graphs of a served bundle: one with all outputs, and one that answers what needs fewer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from export.runners.contract import Runner
from export.runtime import OPENVINO, Provider, load_runner
from protoseg.errors import ExportError
from serving.errors import BundleError
from serving.model.bundle import Bundle
from serving.settings import Settings

# the output on the wire: the linear head's probability of the label that the bundle's head gives a pixel
LABEL_PROBABILITY = "agreement"
CPU_PROVIDERS = ("cpu", *OPENVINO)
NOVELTY = "novelty"


class Network:
    """A graph with all outputs and, on a CPU, graphs cut from it.

    ONNX Runtime computes every node of a graph, also those behind outputs that nobody asked for.

    Args:
        full: The graph with all outputs.
        cuts: The same network with fewer of them, the preferred one first.
    """

    def __init__(self, full: Runner, cuts: Sequence[Runner] = ()) -> None:
        self.outputs = tuple(item.name for item in full.outputs)
        self.description = full.description
        self.on_gpu = full.provider not in CPU_PROVIDERS
        self._full = full
        self._cuts = [(frozenset(item.name for item in cut.outputs), cut) for cut in cuts]

    @property
    def cut_outputs(self) -> frozenset[str]:
        """What the cuts give."""
        return frozenset[str]().union(*(outputs for outputs, _ in self._cuts))

    def __call__(self, batch: NDArray[Any], names: frozenset[str]) -> dict[str, NDArray[Any]]:
        """Run a batch; gives at least the outputs ``names``."""
        for outputs, cut in self._cuts:
            if names <= outputs:
                return cut(batch)
        return self._full(batch)

    def keep_cuts_with(self, output: str) -> None:
        """Free the cuts without an output: nobody will ask for them."""
        for outputs, cut in self._cuts:
            if output not in outputs:
                cut.close()
        self._cuts = [(outputs, cut) for outputs, cut in self._cuts if output in outputs]

    def close(self) -> None:
        """Free the graphs."""
        for graph in (self._full, *(cut for _, cut in self._cuts)):
            graph.close()


def open_network(bundle: Bundle, settings: Settings) -> Network:
    """Load the files of a checked bundle as the settings ask.

    Raises:
        BundleError: If they cannot run here as asked.
    """
    provider: Provider = settings.device
    if bundle.artifact.kind != "onnx":
        provider = "tensorrt"
    elif bundle.openvino is not None:
        provider = bundle.openvino
    elif bundle.artifact.precision == "int8-cpu":
        provider = "cpu"
    threads, parallel = settings.intra_threads, settings.pool_threads

    def load(name: str, provider: Provider) -> Runner:
        return load_runner(bundle.folder, name, provider, intra_threads=threads, parallel=parallel)

    try:
        full = load(bundle.artifact.name, provider)
        # on a GPU the other outputs cost little and the weights' memory counts
        names = [cut.name for cut in bundle.cuts] if full.provider in CPU_PROVIDERS else []
        cuts = [load(name, bundle.openvino or "cpu") for name in names]
        return Network(full, cuts)
    except (ExportError, ImportError, ValueError, OSError) as error:
        raise BundleError(" ".join(str(error).split())) from error
