"""`actvar-trt`: one module for each command, arguments and no more; the work is done in the rooms below."""
