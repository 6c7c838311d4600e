"""TensorRT engines: build, cache, sidecar, Triton repository."""
