"""All that measures: pictures, kernels, memory, and what a GPU says. Results lie in results/."""
