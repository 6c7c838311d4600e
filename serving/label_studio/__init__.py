"""An ML backend for Label Studio, a process beside the service (``python -m serving.label_studio``)."""
