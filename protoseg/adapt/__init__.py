"""Classes added, mended, merged, removed and renamed in a trained network, without a training step.

Called, ``protoseg.adapt(run, output, add=...)``, it is ``protoseg.api.commands.adapt``.
"""

from protoseg.calls import make_callable

make_callable(__name__)
