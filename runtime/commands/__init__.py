"""The commands of `actvar-trt`, one module each: arguments in, messages out."""
