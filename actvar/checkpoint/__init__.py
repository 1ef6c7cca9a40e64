"""Checkpoints in and out: our own files and official VAR's, one adapter for each."""
