"""Run a training and keep each process's prototypes and teacher: ``rank_script.py CONFIG OUT``."""

import os
import sys
from pathlib import Path

import safetensors.torch

from protoseg.config.load import load_config
from protoseg.train import loop, setup

captured = []
real = setup.begin


def capture(*arguments, **keywords):
    made = real(*arguments, **keywords)
    captured.append(made[0])
    return made


if __name__ == "__main__":
    setup.begin = capture
    code = loop.train(load_config(sys.argv[1], sys.argv[3:]))
    networks = captured[0]
    tensors = {k: v.float().contiguous() for k, v in networks.bank.state_dict().items()}
    tensors |= {f"teacher.{k}": v.float().contiguous() for k, v in networks.teacher.state_dict().items()}
    rank = os.environ.get("RANK", "0")
    safetensors.torch.save_file(tensors, Path(sys.argv[2]) / f"rank{rank}.safetensors")
    sys.exit(code)
