"""The file with the Inception network that FID is defined by: which one it is, and how it is had.

Knows the file; not the network. Its weights are those of the TensorFlow graph that the ADM suite uses (2015-12-05), as
torch-fidelity converted them; with any other weights the numbers are not FID.
"""

from pathlib import Path
from urllib.error import URLError

import torch

from actvar.checkpoint.tensor_file import open_tensor_file
from actvar.errors import ActVARError
from actvar.files import hash_file

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
MEGABYTES = 96


def inception_file(given: Path | None, url: str) -> Path:
    """The file that is given, or torch.hub's copy, fetched if need be; in any case the right one.

    Raises:
        ActVARError: it is missing and cannot be fetched, or is another file.
    """
    own = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    file = given or own
    if given is None and not own.is_file():
        _fetch(url, own)
    how = f"Fetch {url} ({MEGABYTES} MB), and name it with --inception."
    if not file.is_file():
        raise ActVARError(f"{file} is missing, or no file. {how}")
    found = hash_file(file.resolve()).sha256
    if found != SHA256:
        raise ActVARError(
            f"{file} is not the Inception network of FID: expected SHA-256 {SHA256[:12]}…, found {found[:12]}…. {how}"
        )
    open_tensor_file(file)  # torch-fidelity would run whatever code a file holds; this refuses it
    return file


def _fetch(url: str, own: Path) -> None:
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(own), hash_prefix=SHA256, progress=False)
    except (URLError, OSError, RuntimeError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise ActVARError(
            f"The Inception network is not at {own}, and cannot be fetched from here ({reason}). Fetch {url} "
            f"({MEGABYTES} MB, SHA-256 {SHA256[:12]}…) elsewhere, and put it there, or name it with --inception."
        ) from None
