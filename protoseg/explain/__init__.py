"""Why a pixel has its class: the training patches that each prototype is nearest to, and which decided.

Called, ``protoseg.explain(run)``, it is ``protoseg.api.commands.explain``.
"""

from protoseg.calls import make_callable

make_callable(__name__)
