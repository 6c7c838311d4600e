"""A command whose device is full ends with one line."""

import torch

from protoseg.inference import guarded_on_device


def test_a_full_device_is_one_line_with_its_cure(capsys):
    def run() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    assert guarded_on_device(run) == 1
    assert capsys.readouterr().err == "error: the device's memory is full; use --device cpu\n"
    assert guarded_on_device(run, "use --sliding") == 1
    assert capsys.readouterr().err == "error: the device's memory is full; use --sliding\n"
    assert guarded_on_device(lambda: None) == 0
    assert guarded_on_device(lambda: 3) == 3
