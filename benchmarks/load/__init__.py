"""What `benchmarks/serving.py` is made of: a server as a process, clients that check what they get, broken requests."""
