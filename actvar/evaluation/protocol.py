"""The protocol of a score: how pictures were drawn, what they are held against, who looks; and what papers do else.

A FID is comparable with another only if all of this is the same. Papers on ImageNet at 256×256 draw 50,000 pictures, 50
of each class, and hold them against the reference batch of the ADM suite. Plain Python: no PyTorch.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from actvar.class_names import IMAGENET_CLASSES
from actvar.config import ModelConfig, Sampling
from actvar.errors import counted
from actvar.evaluation.picture_run import RunSpec
from actvar.scales import STANDARD_PATCH_NUMS

PAPER_PICTURES = 50_000
PAPER_SAMPLING = Sampling(cfg=1.5, top_k=900, top_p=0.96)
"""Of official VAR, which smooths nothing for its figures."""

_RELEASED_FIDS = {16: 3.55, 20: 2.95, 24: 2.33, 30: 1.97}
"""Of the released VAR checkpoints at 256×256, by depth, as official VAR's README gives them."""

_PICTURE_SIDE = 256


@dataclass(frozen=True)
class Extractor:
    """Who looks at pictures: a name, the SHA-256 of its weights, and how it resizes pictures before it looks."""

    name: str
    weights: str
    resizing: str

    @property
    def is_inception(self) -> bool:
        """Whether its Fréchet distance is called FID."""
        return self.name.startswith("inception")


@dataclass(frozen=True)
class HeldAgainst:
    """A reference as a report names it.

    Attributes:
        name: as it was given.
        sha256: of its file; None for a folder or a stream, which have none.
        pictures: that precision and recall look at; 0 where there are statistics alone.
        fitted: pictures that the statistics are of; 0 where a file does not tell.
        resizing: what was done to its pictures before.
        is_adm: whether it has the arrays of the ADM suite's batch of ImageNet at 256×256. That file's hash is published
            nowhere, so this cannot be told more surely.
    """

    name: str
    sha256: str | None
    pictures: int
    fitted: int
    resizing: str
    is_adm: bool


@dataclass(frozen=True)
class Protocol:
    """All that a score depends on, but for the model.

    Attributes:
        run: what was drawn.
        reference: what it is held against.
        extractor: who looks.
        evaluator: what computes the scores, and its version.
    """

    run: RunSpec
    reference: HeldAgainst
    extractor: Extractor
    evaluator: str

    @property
    def sampling(self) -> Sampling:
        """Of the pictures."""
        return Sampling(self.run.cfg, self.run.top_k, self.run.top_p)

    @property
    def per_class(self) -> tuple[int, int]:
        """Pictures of the class with the fewest, and of that with the most, of those that are drawn."""
        least, more = divmod(self.run.count, self.run.drawn_classes)
        return least, least + bool(more)

    @property
    def classes_in_words(self) -> str:
        """What is drawn, where that is not all classes alike."""
        if self.run.class_ids == (self.run.classes,):
            return "pictures without a class"
        none = "" if self.run.knows_classes else ", of which one is none"
        return f"pictures of {counted(self.run.drawn_classes, 'class', 'classes')}{none}"

    @property
    def departures(self) -> tuple[str, ...]:
        """Where it is not what papers do, in words; of an extractor whose scores nobody has published no numbers."""
        smooth = ("smooth sampling, which papers use for pictures to look at, and for no score",)
        return (*(smooth if self.run.smooth else ()), *(self._departures() if self.extractor.is_inception else ()))

    def _departures(self) -> Iterator[str]:
        run = self.run
        if run.classes != IMAGENET_CLASSES:
            yield f"{counted(run.classes, 'class', 'classes')}, where ImageNet has {IMAGENET_CLASSES:,}"
        if run.class_ids:
            yield self.classes_in_words
        if run.side != _PICTURE_SIDE:
            yield f"pictures of {run.side}×{run.side}, not {_PICTURE_SIDE}×{_PICTURE_SIDE}"
        if run.count != PAPER_PICTURES:
            fewer = "; FID grows as they get fewer" if run.count < PAPER_PICTURES else ""
            yield f"{counted(run.count, 'picture', form=',')}, not {PAPER_PICTURES:,}{fewer}"
        if len(set(self.per_class)) > 1:
            yield f"{counted(self.per_class[0], 'picture')} of some classes and {self.per_class[1]} of others"
        for name, theirs in asdict(PAPER_SAMPLING).items():
            if (mine := getattr(run, name)) != theirs:
                yield f"{name.replace('_', '-')} {mine:g}, not {theirs:g}"
        if not self.reference.is_adm:
            yield "a reference without the arrays of the ADM suite's VIRTUAL_imagenet256_labeled.npz"

    @property
    def record(self) -> dict[str, Any]:
        """As it stands in a report."""
        least, most = self.per_class
        return {
            "sampling": {**asdict(self.sampling), "seed": self.run.seed, "smoothed": self.run.smooth},
            "pictures": self.run.count,
            "class_ids": list(self.run.class_ids) or None,
            "pictures_per_class": {"least": least, "most": most},
            "reference": asdict(self.reference),
            "extractor": asdict(self.extractor),
            "evaluator": self.evaluator,
            "unlike_papers": list(self.departures),
        }

    @property
    def rows(self) -> list[tuple[str, str]]:
        """As it stands in a table, but for the names of the reference and the extractor."""
        (least, most), drawn = self.per_class, self.sampling
        smooth = ", smooth" if self.run.smooth else ""
        rows = [
            (
                "drawn with",
                f"cfg {drawn.cfg:g}, top-k {drawn.top_k}, top-p {drawn.top_p:g}{smooth}, seed {self.run.seed}",
            ),
            ("pictures of each class", str(least) if least == most else f"{least} or {most}"),
            ("reference resized", self.reference.resizing),
            ("pictures resized", self.extractor.resizing),
            ("weights of the extractor", f"SHA-256 {self.extractor.weights[:12]}…"),
        ]
        if self.run.class_ids:
            rows.insert(1, ("drawn", self.classes_in_words))
        return rows + [("unlike papers", departure) for departure in self.departures]


def released_fid(model: ModelConfig) -> tuple[str, float] | None:
    """The released VAR of a model's size, and its FID; None where there is none of that size."""
    fid = _RELEASED_FIDS.get(model.depth)
    is_released = (
        model.num_classes == IMAGENET_CLASSES
        and model.schedule.patch_nums == STANDARD_PATCH_NUMS
        and model.picture_size == _PICTURE_SIDE
        and not model.shared_adaln
    )
    return (f"VAR-d{model.depth}", fid) if fid and is_released else None
