"""Training of the VQVAE and of dense VAR: data in, a checkpoint out. Distillation is `actvar.distill`."""
