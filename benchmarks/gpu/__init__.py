"""What only a GPU can show: the steps of `benchmarks/gpu_evidence.py`."""
