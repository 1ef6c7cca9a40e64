"""Where our kernels are expected to be faster than what an engine or PyTorch has of its own: a reading, not a figure.

`kernels/NOTES.md` says why. What was measured on the GPU at hand counts more, wherever it is there.
"""

_AMPERE_AND_ADA = "8"


def routing_pays(capability: str, active: int, experts: int) -> bool:
    """Whether a token's experts alone are expected to take less time than all of them with a mask.

    On Ampere and Ada, where our tiles come near to a dense product's speed, and for half of the experts or fewer: above
    that the tiles leave 0.9 of the work and more.
    """
    return capability.partition(".")[0] == _AMPERE_AND_ADA and 2 * active <= experts
