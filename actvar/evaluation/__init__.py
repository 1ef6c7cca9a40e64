"""How good the pictures are: a judge of Glyphs-100 that no generator was trained with, and the figures it gives."""
