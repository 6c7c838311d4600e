"""Why a pixel has its class: the training patches that each prototype is nearest to, and which decided."""
