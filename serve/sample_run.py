"""A run of numbered pictures as data sets have them: PNG files, WebDataset's tar files, Parquet.

    run.json                  what is drawn, in which form (`SampleSpec`)
    shard-000000.tar          png 000000, its class and its numbers, then 000001 and so on; or shard-000000.parquet
    0088/000088.png           in place of these: a picture in a folder of its class; of none in the folder none
    shards/000000.json        the record of the shard that begins with picture 0: size and SHA-256 of each of its files
    manifest.json             when all are there: size and SHA-256 of every record

A shard's record is written when its files are, so a shard is there whole or not at all. The same pictures make the same
bytes: no times, no names of machines. What is drawn, and which shard holds what, is `actvar.evaluation.picture_run`'s.

Letters in shapes: N pictures, H W pixels down and across, 3 red green blue.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from actvar.bundle.json_form import MAX_JSON_BYTES, FormReader, content_hash, write_json
from actvar.classes import NONE
from actvar.errors import ActVARError, needs
from actvar.evaluation.picture_run import NumberedRun, Piece, RunSpec, file_state
from actvar.files import FileEntry, hash_file, read_verified, written_whole
from actvar.image import png

FORMAT, VERSION = "actvar-samples", 1
RECORD_FORMAT, MANIFEST_FORMAT = "actvar-sample-shard", "actvar-sample-manifest"
MANIFEST_FILE, RECORDS = "manifest.json", "shards"
_MAX_ENTRY = 256  # bytes of a record for each of its files, of which a shard may have 100,000

Form: TypeAlias = Literal["png", "webdataset", "parquet"]


@dataclass(frozen=True)
class SampleSpec(RunSpec):
    """All that decides the files of a run.

    Attributes:
        form: of the files.
        shard_size: pictures of a shard.
    """

    form: Form
    shard_size: int

    @property
    def record(self) -> dict[str, Any]:
        """As it stands in `run.json`."""
        return {**super().record, "format": FORMAT, "version": VERSION}


@dataclass(frozen=True)
class SampleRun(NumberedRun):
    """A run whose shards have a record each; see the head of this file."""

    spec: SampleSpec

    @property
    def piece_size(self) -> int:
        """Pictures of a shard."""
        return self.spec.shard_size

    @property
    def manifest(self) -> Path:
        """Is there when all shards are."""
        return self.folder / MANIFEST_FILE

    def finish(self) -> bool:
        """Write the manifest, if all shards are there; returns whether they are.

        Raises:
            ActVARError: it cannot be written.
        """
        if self.missing():
            return False
        entries = [hash_file(self.folder / RECORDS / _record_name(piece)) for piece in self.pieces()]
        content = {
            "format": MANIFEST_FORMAT,
            "version": VERSION,
            "run": content_hash(self.spec.record),
            "pictures": self.spec.count,
            "records": [asdict(entry) for entry in entries],
        }
        try:
            write_json(self.manifest, content)
        except OSError as error:
            raise ActVARError(
                f"{self.manifest} cannot be written: {error.strerror}. Give the same command again."
            ) from None
        return True

    def _write(self, piece: Piece, pictures_NHW3: np.ndarray) -> None:
        entries = []
        for name, content in _files(self.spec, piece, pictures_NHW3):
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            with written_whole(path) as file:
                file.write(content)
            entries.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
        (self.folder / RECORDS).mkdir(exist_ok=True)
        write_json(self.folder / RECORDS / _record_name(piece), self._record(piece, entries))

    def _holds(self, piece: Piece) -> bool:
        names = file_names(self.spec, piece)
        most = MAX_JSON_BYTES + _MAX_ENTRY * len(names)
        reader = FormReader(self.folder / RECORDS / _record_name(piece), "", ActVARError, max_bytes=most)
        try:
            found = reader.load()
            listed = found.get("files") if isinstance(found, dict) else None
            entries = [
                reader.entry("files", reader.fields("files", each, "file bytes sha256"), name)
                for each, name in zip(reader.items("files", listed, len(names), len(names)), names, strict=True)
            ]
            reader.check_hash(found)
            expected = self._record(piece, entries)
            if {name: found.get(name) for name in expected} != expected:
                return False
            for entry in entries:
                read_verified(self.folder / entry.file, entry, "")
        except (ActVARError, OSError):
            return False
        return True

    def _record(self, piece: Piece, entries: list[FileEntry]) -> dict[str, Any]:
        return {
            "format": RECORD_FORMAT,
            "version": VERSION,
            "run": content_hash(self.spec.record),
            "first": piece.first,
            "count": piece.count,
            "files": [asdict(entry) for entry in entries],
        }

    def _state(self, piece: Piece) -> tuple[int, ...]:
        paths = [f"{RECORDS}/{_record_name(piece)}", *file_names(self.spec, piece)]
        return tuple(number for path in paths for number in file_state(self.folder / path))


def require_form(form: Form) -> None:
    """Make sure that files of this form can be written, before anything is drawn.

    Raises:
        ActVARError: a package for it is not installed.
    """
    if form == "parquet":
        with needs("ray", "to write Parquet"):
            import pyarrow.parquet  # noqa: F401


def file_names(spec: SampleSpec, piece: Piece) -> list[str]:
    """The files of a shard, in the order in which its record lists them."""
    if spec.form == "png":
        return [_png_name(spec, number) for number in piece.numbers]
    return [f"shard-{piece.first:06d}.{'tar' if spec.form == 'webdataset' else 'parquet'}"]


def _record_name(piece: Piece) -> str:
    return f"{piece.first:06d}.json"


def _png_name(spec: SampleSpec, number: int) -> str:
    class_id = spec.class_of(number)
    return f"{NONE if class_id == spec.classes else format(class_id, '04d')}/{number:06d}.png"


def _files(spec: SampleSpec, piece: Piece, pictures_NHW3: np.ndarray) -> Iterator[tuple[str, bytes]]:
    """The files of a shard by their names, each made when it is asked for."""
    if spec.form == "png":
        for number, picture_HW3 in zip(piece.numbers, pictures_NHW3, strict=True):
            yield _png_name(spec, number), png(picture_HW3)
    else:
        make = _tar if spec.form == "webdataset" else _parquet
        [name] = file_names(spec, piece)
        yield name, make(spec, piece, pictures_NHW3)


def _tar(spec: SampleSpec, piece: Piece, pictures_NHW3: np.ndarray) -> bytes:
    """A shard as WebDataset reads it: what belongs to a picture has its number for a name."""
    result = io.BytesIO()
    with tarfile.open(fileobj=result, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number, picture_HW3 in zip(piece.numbers, pictures_NHW3, strict=True):
            class_id = spec.class_of(number)
            facts = {"class_id": class_id, "number": number, "seed": spec.seed}
            parts = {"png": png(picture_HW3), "cls": str(class_id).encode(), "json": json.dumps(facts).encode()}
            for end, content in parts.items():
                member = tarfile.TarInfo(f"{number:06d}.{end}")  # its time is 0, and it belongs to nobody
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return result.getvalue()


def _parquet(spec: SampleSpec, piece: Piece, pictures_NHW3: np.ndarray) -> bytes:
    """A shard as Hugging Face's datasets read it: an `image` of bytes and a path, its `label`, number and seed."""
    import pyarrow
    import pyarrow.parquet

    images = [
        {"bytes": png(picture_HW3), "path": f"{number:06d}.png"}
        for number, picture_HW3 in zip(piece.numbers, pictures_NHW3, strict=True)
    ]
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {
        "image": pyarrow.array(images, image),
        "label": pyarrow.array([spec.class_of(number) for number in piece.numbers], pyarrow.int64()),
        "number": pyarrow.array(list(piece.numbers), pyarrow.uint64()),
        "seed": pyarrow.array([spec.seed] * piece.count, pyarrow.uint64()),
    }
    whole = {"int64": "label", "uint64": "number seed"}
    features: dict[str, Any] = {"image": {"_type": "Image"}}
    features |= {name: {"dtype": kind, "_type": "Value"} for kind, names in whole.items() for name in names.split()}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    result = io.BytesIO()
    pyarrow.parquet.write_table(table, result)
    return result.getvalue()
