"""Checkpoint to ONNX and TensorRT, gated by parity."""
