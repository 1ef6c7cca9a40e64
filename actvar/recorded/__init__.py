"""The model in the form that CUDA graphs record: fixed places, fixed shapes, and nothing that the host waits for."""
