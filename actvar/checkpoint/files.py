"""Which files a model comes from, without opening them: nothing here needs PyTorch."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from actvar.checkpoint.shards import is_index, read_index
from actvar.config import Decoder
from actvar.errors import ActVARError, BundleError, CheckpointError, shown
from actvar.files import hash_file
from actvar.scales import ScaleSchedule

SHIPPED_MODELS = ("actvar-mini", "actvar-mini-guidance-free", "var-mini")


@dataclass(frozen=True)
class Checkpoint:
    """A model's file, and that of its VQVAE where the first does not hold one.

    Attributes:
        path: `.safetensors`, the `.index.json` of several, or `.pth`; what it holds is told by its content. Of an
            official one that holds the weights and a moving average of them (`ema`, `model_ema`, …), the average is
            read; `actvar.checkpoint.networks` lists the wrappings.
        vqvae: the file that holds the VQVAE, where the first holds none: `vae_ch160v4096z32.pth` for official files,
            another checkpoint of ours for ours.
        schedule: the token maps of an official file that does not tell them (no `lvl_1L`); without it the standard
            ones, or var_d36's, whichever has as many tokens.
        decoder: "small" takes the small decoder that the checkpoint holds beside its VQVAE, too, and the model draws
            with it; "full" leaves it where it is.
        guidance_until: the last scale that is guided, from 1; the model's own if left out.
        smooth: whether codes are mixed as the model draws; as its file says, which is mostly no, if left out.
        znorm: of an official VQVAE that was trained with `using_znorm`, which its file does not tell.
    """

    path: Path
    vqvae: Path | None = None
    schedule: ScaleSchedule | None = None
    decoder: Decoder = "full"
    guidance_until: int | None = None
    smooth: bool | None = None
    znorm: bool = False

    def digest(self) -> str:
        """SHA-256 over what the files hold, and over what else is said of the model.

        Raises:
            CheckpointError: one is missing or cannot be read.
        """
        digest = hashlib.sha256()
        for path in (file for named in (self.path, self.vqvae) if named for file in _files_of(named)):
            try:
                digest.update(hash_file(path.resolve()).sha256.encode())  # a download's cache holds links
            except (BundleError, OSError, ValueError, RuntimeError):  # the last of a loop of links
                raise CheckpointError(f"{shown(path)} is not a file that can be read. Name a checkpoint.") from None
        if self.schedule:
            digest.update(repr(self.schedule.patch_nums).encode())
        if self.decoder != "full":
            digest.update(self.decoder.encode())
        if self.guidance_until is not None:
            digest.update(f"guided until {self.guidance_until}".encode())
        if self.smooth is not None:
            digest.update(b"smooth" if self.smooth else b"not smooth")
        if self.znorm:
            digest.update(b"znorm")
        return digest.hexdigest()


def _files_of(path: Path) -> tuple[Path, ...]:
    """The file, and the shards of an index."""
    return (path, *read_index(path).shards) if is_index(path) else (path,)


def shipped_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a model that is in the package; all share the VQVAE, which is in ActVAR-mini's file.

    Raises:
        ActVARError: this installation lacks it.
    """
    assets = Path(str(files("actvar"))) / "assets"
    with_vqvae = assets / "actvar_mini.safetensors"
    path = assets / f"{name.replace('-', '_')}.safetensors"
    for file in (path, with_vqvae):
        if not file.is_file():
            raise ActVARError(f"{file} is missing, so there is no {name} here. Install again, or name another --model.")
    return Checkpoint(path, None if path == with_vqvae else with_vqvae)
