"""Run a training and keep each process's prototypes: ``rank_script.py CONFIG OUT``."""

import sys
from pathlib import Path

import safetensors.torch

from protoseg.config.load import load_config
from protoseg.train import loop

captured = []
real = loop.build_context


def capture(*arguments, **keywords):
    made = real(*arguments, **keywords)
    captured.append(made[0])
    return made


if __name__ == "__main__":
    loop.build_context = capture
    code = loop.train(load_config(sys.argv[1], sys.argv[3:]))
    context = captured[0]
    tensors = {k: v.float().contiguous() for k, v in context.bank.state_dict().items()}
    tensors |= {f"teacher.{k}": v.float().contiguous() for k, v in context.teacher.state_dict().items()}
    safetensors.torch.save_file(tensors, Path(sys.argv[2]) / f"rank{context.rank}.safetensors")
    sys.exit(code)
