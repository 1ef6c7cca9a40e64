"""The networks: VQVAE, VAR and ActVAR. PyTorch; no files, no command line."""
