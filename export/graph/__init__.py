"""From a network to ONNX graphs of every precision."""
