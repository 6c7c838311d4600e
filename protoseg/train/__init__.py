"""The training run (``accelerate launch --quiet -m protoseg.train``).

Called, ``protoseg.train(config)``, it is ``protoseg.api.commands.train``.
"""

from protoseg.calls import make_callable

make_callable(__name__)
