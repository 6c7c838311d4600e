import pytest


@pytest.fixture(autouse=True)
def cheap_memory(request, monkeypatch):
    """Counting a network's outputs takes three quarters of a check; tests of the memory's estimate do it."""
    if "memory" not in request.node.name:
        monkeypatch.setattr("protoseg.check.memory.count_outputs", lambda network, shape: 1)
