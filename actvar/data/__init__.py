"""Pictures to train on and to judge by."""
