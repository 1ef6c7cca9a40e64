"""Graphs and engines held against the PyTorch model."""
