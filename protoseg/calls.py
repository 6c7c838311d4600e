"""Subpackages that are called: ``protoseg.train(...)``, ``protoseg.evaluate(...)`` and some others.

Their names are subpackages, and importing one (``import protoseg.train.loop`` anywhere in the process) sets
the attribute of ``protoseg`` to the module. A function of that name would be there or not depending on what
was imported before; one that stayed by force would break ``import protoseg.train.loop as loop`` and
patching by name. So the module itself can be called, and ``protoseg.train`` is one object always.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class CallableModule(ModuleType):
    """A subpackage that, when called, is the function of its name in ``protoseg.api.commands``."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call that function."""
        return _function(self)(*args, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(_function(self))


def _function(module: ModuleType) -> Callable[..., Any]:
    # by name: those functions stand above the subpackages, which must not import them
    found: Callable[..., Any] = getattr(
        import_module("protoseg.api.commands"), module.__name__.rpartition(".")[2]
    )
    return found


def make_callable(name: str) -> None:
    """Make the module of that name callable; for its ``__init__.py``."""
    sys.modules[name].__class__ = CallableModule
