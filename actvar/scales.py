"""The scale schedule: how many tokens each step predicts, and where they sit in the sequence.

Knows patch_nums and how a person writes them: no tensors, no model, no activation rates.

Letters in shapes: S scales, L tokens of one scale, P tokens of all scales before it.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

from actvar.errors import shown

STANDARD_PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
LARGE_PATCH_NUMS = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)  # the 512-pixel model, var_d36

# What a file or a person may ask for: far above every known model, and far below what takes hours to count.
MAX_SCALES = 64
MAX_SIDE = 512  # pictures of 8192 pixels


def whole_numbers(text: str) -> tuple[int, ...] | None:
    """Whole numbers as a person writes several: `1,2,4`, or `1_2_4`, which Python would read as 124.

    Returns: None where the text is something else, or a number has more than nine digits.
    """
    parts = [part.strip() for part in text.replace("_", ",").split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 for part in parts):
        return None
    return tuple(int(part) for part in parts)


@dataclass(frozen=True)
class ScaleSchedule:
    """The token maps that one picture is drawn with, smallest first (VAR, Sec. 3.2).

    Raises:
        ValueError: patch_nums has fewer than two entries or more than MAX_SCALES, does not increase, does not start at
            1, or goes beyond MAX_SIDE.
    """

    patch_nums: tuple[int, ...] = STANDARD_PATCH_NUMS

    def __post_init__(self) -> None:
        if len(self.patch_nums) < 2 or self.patch_nums[0] != 1:
            raise ValueError(f"patch_nums must be two or more numbers that start at 1, got {shown(self.patch_nums)}")
        if len(self.patch_nums) > MAX_SCALES:
            raise ValueError(f"patch_nums must be {MAX_SCALES} numbers at most, got {len(self.patch_nums)}")
        if any(b <= a for a, b in pairwise(self.patch_nums)):
            raise ValueError(f"patch_nums must increase, got {shown(self.patch_nums)}")
        if self.side > MAX_SIDE:
            raise ValueError(f"patch_nums must end at {MAX_SIDE} or below, got {shown(self.patch_nums)}")

    @classmethod
    def parse(cls, text: str) -> "ScaleSchedule":
        """Read patch_nums as a person writes them: `1,2,4,8`, or `1_2_4_8` as official VAR's command line has it.

        Raises:
            ValueError: the text is something else, or no schedule.
        """
        numbers = whole_numbers(text)
        if numbers is None:
            raise ValueError(
                f"patch_nums must be whole numbers with commas between, such as 1,2,4,8; got '{shown(text)}'"
            )
        return cls(numbers)

    @property
    def text(self) -> str:
        """As `parse` reads it."""
        return ",".join(map(str, self.patch_nums))

    def __len__(self) -> int:
        """S."""
        return len(self.patch_nums)

    @property
    def side(self) -> int:
        """Side of the last and largest token map, which is that of f_hat."""
        return self.patch_nums[-1]

    @property
    def tokens(self) -> tuple[int, ...]:
        """L of every scale."""
        return tuple(p * p for p in self.patch_nums)

    @property
    def starts(self) -> tuple[int, ...]:
        """P of every scale: the first token's place in the whole sequence."""
        return (0, *accumulate(self.tokens))[:-1]

    @property
    def total(self) -> int:
        """Tokens of all scales together."""
        return sum(self.tokens)

    def phi_indices(self, count: int) -> tuple[int, ...]:
        """Which of the quantizer's convolutions each scale uses: the one whose tick is nearest to si / (S - 1).

        Ticks are in the middles of equal parts, but for four convolutions, where official VAR has them further out.
        Some schedules, that of ten scales among them, have a scale halfway between two ticks, where the last bit of a
        tick decides. So the arithmetic is that of numpy's linspace, with which official checkpoints were trained.
        """
        part = 3 if count == 4 else 2
        first, last = 1 / part / count, 1 - 1 / part / count
        step = (last - first) / max(count - 1, 1)
        ticks = [*(first + step * i for i in range(count - 1)), last]
        places = [si / (len(self) - 1) for si in range(len(self))]
        return tuple(min(range(count), key=lambda i: abs(ticks[i] - place)) for place in places)

    def cfg_ramp(self, si: int) -> float:
        """The share of the guidance strength that scale si is given: 0 at the first scale, 1 at the last."""
        return si / (len(self) - 1)

    def smooth_gain(self, si: int) -> float:
        """What logits are multiplied by where codes are mixed: 1 at the first scale, 2 at the last (official VAR)."""
        return 1 + self.cfg_ramp(si)

    def smooth_temperature(self, si: int) -> float:
        """How softly codes are mixed: 0.27 at the first scale, where many count, to 0.0135, where mostly one does."""
        return max(0.27 * (1 - 0.95 * self.cfg_ramp(si)), 0.005)
