"""Which sparse parts a recorded drawing has: the library's kernels where they run, else PyTorch's operators."""

from actvar.config import ModelConfig
from actvar.plugins.library import kernel_library
from actvar.plugins.machine_code import runs_on
from actvar.recorded.operators import PlainOperators, SparseOperators


def operators_for(config: ModelConfig, capability: str) -> tuple[SparseOperators, str]:
    """What leaves tokens and experts out on a GPU, and its name: our kernels, where a library has them for this one."""
    library = kernel_library() if config.activation else None
    if not library or not runs_on(library, capability):
        return PlainOperators(), "PyTorch"
    from actvar.plugins.torch.sparse import LibraryOperators

    return LibraryOperators(capability), library.name
