"""How fast pictures are drawn, beside PyTorch and official VAR: `actvar-trt bench`."""
