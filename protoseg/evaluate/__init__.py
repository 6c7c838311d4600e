"""Metrics and the measuring of checkpoints (``python -m protoseg.evaluate``).

Called, ``protoseg.evaluate(run)``, it is ``protoseg.api.commands.evaluate``.
"""

from protoseg.calls import make_callable

make_callable(__name__)
