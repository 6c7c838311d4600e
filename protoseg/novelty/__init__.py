"""What a network was never shown (``python -m protoseg.novelty``).

Called, ``protoseg.novelty(run)``, it is ``protoseg.api.commands.novelty``.
"""

from protoseg.calls import make_callable

make_callable(__name__)
