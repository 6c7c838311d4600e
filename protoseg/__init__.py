"""Semi-supervised semantic segmentation with prototype-based consistency regularisation.

::

    import protoseg

    run = protoseg.train("my.yaml")                # as python -m protoseg.train
    bundle = protoseg.export(run)                  # as python -m export.onnx
    model = protoseg.load(bundle)                  # a bundle without torch, a checkpoint with it
    result = model("photo.jpg")

``__init__.pyi`` tells the types. Importing this imports nothing else: what is named here is looked for when
it is asked for, so that a bundle runs without torch and a wrong setting is told before torch has been
imported.
"""

from importlib import import_module

__version__ = "0.1.0"

_FACE = {
    "load": "protoseg.api.load",
    "Model": "protoseg.api.model",
    "Segmenter": "protoseg.api.segmenter",
    "Bundle": "serving.local",
    "Result": "protoseg.api.result",
    "export": "protoseg.api.commands",
    "UserError": "protoseg.errors",
}
# subpackages that can be called, see protoseg/calls.py
_CALLED = ("train", "evaluate", "adapt", "explain", "novelty")

__all__ = ["__version__", *_FACE, *_CALLED]


def __getattr__(name: str) -> object:
    """Look a name of the face up."""
    if name in _CALLED:
        return import_module(f"protoseg.{name}")
    if name not in _FACE:
        raise AttributeError(f"module 'protoseg' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_FACE[name]), name)
    return value


def __dir__() -> list[str]:
    """The face."""
    return sorted(__all__)
