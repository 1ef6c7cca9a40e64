"""A Pipeline for whatever names a model, and a model in the form in which the Hub takes it. `actvar.Pipeline` is it.

    from actvar import Pipeline

    pipe = Pipeline.from_pretrained("actvar-mini")     # also a Hub repository, a bundle folder, a checkpoint file
    images = pipe(class_labels=["brown-crescent", 88], guidance_scale=1.5, seed=7).images   # PIL
    for picture in pipe.stream(class_labels=range(100), batch_size=4): ...
    pipe.save_pretrained("my-bundle")

What has to be exported is exported once, into the cache, and only then PyTorch and ONNX are loaded; a bundle is drawn
from without them.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from actvar.arguments import held_labels, one_of, require_place, whole_number
from actvar.bundle.contract import PRECISIONS, Precision
from actvar.bundle.manifest import read_manifest
from actvar.bundle.plans import PlanOptions
from actvar.checkpoint.files import Checkpoint
from actvar.classes import NONE
from actvar.config import Decoder, ModelConfig
from actvar.console import say, wanted_bar
from actvar.editing.area import Rectangle
from actvar.editing.edit import Edit
from actvar.editing.square import AnyPicture
from actvar.errors import ArgumentError, BundleError, DamagedError, needs
from actvar.export.bundle_cache import cached_bundle, discard
from actvar.export.saved_model import save_bundle, save_network
from actvar.naming import NamedModel, named_model
from actvar.runtime import api
from actvar.runtime.backends.protocol import Device
from actvar.runtime.pictures import PictureSource
from actvar.runtime.pipeline import GraphSource
from actvar.runtime.sources import open_bundle, open_torch, require_engine
from actvar.scales import ScaleSchedule

AnyBackend: TypeAlias = Literal["onnxruntime", "tensorrt", "torch"]
Accept: TypeAlias = Callable[[ModelConfig], object]


class Pipeline(api.Pipeline):
    """Draws pictures of classes, with a model that may come from anywhere; see `actvar.runtime.api.Pipeline`.

    `checkpoint` is the file that the model came from, if it was not a bundle.
    """

    checkpoint: Checkpoint | None = None

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | NamedModel = "actvar-mini",
        *,
        vqvae: str | os.PathLike[str] | None = None,
        patch_nums: Sequence[int] | None = None,
        znorm: bool = False,
        precision: Precision | None = None,
        backend: AnyBackend = "onnxruntime",
        device: Device | None = None,
        batch_size: int = 1,
        threads: int = 0,
        revision: str | None = None,
        local_files_only: bool = False,
        progress_bar: bool = True,
        guidance_until: int | None = None,
        decoder: Decoder | None = None,
        smooth: bool | None = None,
        accept: Accept | None = None,
    ) -> "Pipeline":
        """Open a model by its name.

        A checkpoint is exported on its first use, into the cache ($ACTVAR_CACHE, or actvar-trt in the user's own cache
        folder), and for TensorRT built for this GPU; later uses take it from there.

        Args:
            model: "actvar-mini" or "var-mini", which ship with the package; a bundle's folder; a checkpoint's file,
                ours or official VAR's; a Hub repository, "user/repo", or a file in one, "user/repo/var_d20.pth". What
                is here wins over the Hub; a path object is never a repository.
            vqvae: the VQVAE's file, for a checkpoint that holds none.
            patch_nums: sides of the token maps, for a checkpoint that does not tell them.
            znorm: for an official VQVAE that was trained with `using_znorm`, which its file does not tell.
            precision: that a checkpoint is exported in, "fp32" if left out; of a bundle the one that it must have.
            backend: "onnxruntime", "tensorrt", or "torch" for the model itself in PyTorch: on the CPU
                as it is, on a GPU (`device="cuda"`) as CUDA graphs, without an export.
            device, batch_size, threads: see `from_bundle`.
            revision: of a Hub repository: a branch, a tag or a commit.
            local_files_only: of a Hub repository: what was fetched before, and no network.
            progress_bar: whether to show what goes on, here and in calls.
            guidance_until: of a checkpoint: the last scale that is guided, from 1; scales after it run for a picture's
                class alone, in half the time. All that the model guides, if left out.
            decoder: "full" or "small", of a checkpoint that has a small one, too; "full" if left out. Of a bundle the
                one that it must have.
            smooth: mix codes in place of drawing one for each token, as official VAR's `more_smooth` does it
                (docs/smooth.md). Of a bundle what it must do.
            accept: sees the model's configuration before any long work, and may refuse it by raising.

        Raises:
            ArgumentError: arguments exclude each other or do not fit the model; it is a ValueError.
            UsageError: nothing bears this name.
            CheckpointError: the checkpoint cannot be used.
            BundleError: the bundle cannot be used, or has no plans for this GPU.
            ActVARError: what is needed is not installed, not there, or cannot be fetched or written.
        """
        engine = _Engine(backend, device, batch_size, threads)
        engine.require(precision)
        if guidance_until is not None:
            whole_number("guidance_until", guidance_until, 0)
        if isinstance(model, NamedModel):
            named = model
        else:
            named = named_model(
                model if isinstance(model, str) else os.path.abspath(model),
                Path(vqvae) if vqvae is not None else None,
                schedule=_schedule(patch_nums),
                znorm=znorm,
                revision=revision,
                local_files_only=local_files_only,
                with_plans=backend == "tensorrt",
                shown=progress_bar,
            )
        wanted = _Wanted(precision, accept or (lambda config: None))
        named = _chosen(named, decoder, guidance_until, smooth)
        source, folder = _opened(named, engine, wanted, progress_bar)
        pipe = cls(source, name=named.name, bundle=folder, progress_bar=progress_bar)
        pipe.checkpoint = named.checkpoint
        return pipe

    def edit(
        self,
        image: AnyPicture,
        mask: "Rectangle | AnyPicture",
        class_labels: api.ClassLabels = NONE,
        guidance_scale: float | None = None,
        *,
        paste: bool = False,
        num_images_per_label: int = 1,
        output_type: api.OutputType = "pil",
        **drawing: Any,
    ) -> api.PipelineOutput:
        """Draw a part of a picture anew, as official VAR does it (docs/editing.md).

        Args:
            image: a file, its bytes, PIL's picture, or numpy's, uint8 [H, W, 3]. What is not of the model's size is
                resized and its middle cut out, as the VQVAE's training did it.
            mask: `Replace(x0, y0, x1, y1)` or `Keep(...)` of `actvar.editing.area`, in shares of the side; or a picture
                as large as the first, white or transparent where it is drawn anew; or numpy's bools.
            class_labels: what is drawn there; no class if left out, so that the picture around it decides alone.
            paste: put the pixels that are kept back as they were, with a soft seam; else they are what the VQVAE makes
                of their codes.
            drawing: the other arguments of a call.

        Raises:
            ArgumentError: an argument does not fit the model or the other, and nothing was drawn; it is a ValueError.
            BundleError: the bundle has no encoder.
            ActVARError: the engine failed.
        """
        edit, labels = Edit.of(self.model, image, mask), list(held_labels(self.model, class_labels))
        whole_number("num_images_per_label", num_images_per_label, 1)
        more = {**drawing, "num_images_per_label": num_images_per_label, "output_type": output_type}
        given = edit.given(self.source.encode(edit.pixels_HH3))
        pictures = self.stream(labels, guidance_scale, given=given, **more)
        if paste:
            pictures = (replace(picture, image=edit.pasted_on(picture.image)) for picture in pictures)
        return self._all(pictures, labels, num_images_per_label, output_type)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the model as a folder that `from_pretrained` opens, here or on the Hub, and draws the same bytes with.

        It holds config.json, README.md with the head of a model card, and the bundle with its plans; or
        model.safetensors in fp32, where PyTorch draws. It is there whole or not at all.

        Args:
            folder: a new one, an empty one, or a bundle, which is replaced.

        Raises:
            UsageError: the pipeline is closed.
            BundleError: the folder is something else, or cannot be written; or the bundle was altered meanwhile.
        """
        source, target = self.source, Path(folder)
        if isinstance(source, GraphSource) and self.bundle:
            save_bundle(self.bundle, source.engine.manifest, target)
        else:
            save_network(source, target)
        return target


def _schedule(patch_nums: Sequence[int] | None) -> ScaleSchedule | None:
    """The token maps of these sides.

    Raises:
        ArgumentError: they are none.
    """
    if patch_nums is None:
        return None
    try:
        return ScaleSchedule(tuple(whole_number("patch_nums", side, 1) for side in patch_nums))
    except TypeError:
        raise ArgumentError(f"patch_nums must be whole numbers such as (1, 2, 4, 8), got {patch_nums!r}.") from None
    except ValueError as error:
        raise ArgumentError(f"{str(error).rstrip('.')}.") from None


@dataclass(frozen=True)
class _Engine:
    """What is to draw, and how; the fields are arguments of `Pipeline.from_pretrained`."""

    backend: AnyBackend
    device: Device | None
    batch_size: int
    threads: int

    def require(self, precision: str | None) -> None:
        """Hold the arguments to each other, before anything is fetched or exported.

        Raises:
            ArgumentError: they exclude each other, or one is unknown.
        """
        one_of("backend", self.backend, get_args(AnyBackend))
        require_engine(self.backend, self.device, self.batch_size, self.threads)
        if precision is not None:
            one_of("precision", precision, PRECISIONS)
        require_place(self.backend, self.device, precision)

    def open(self, folder: Path) -> GraphSource:
        """A bundle that somebody keeps: nothing is put into it."""
        assert self.backend != "torch"
        return open_bundle(folder, self.backend, self.device, self.batch_size, self.threads)

    def open_torch(self, checkpoint: Checkpoint, precision: Precision | None) -> PictureSource:
        """A checkpoint behind PyTorch."""
        precision = precision or "fp32"
        assert precision in ("fp32", "fp16", "bf16")  # `require` has seen to it
        return open_torch(checkpoint, self.threads, self.device or "cpu", precision, self.batch_size)

    def open_own(self, folder: Path, shown: bool) -> GraphSource:
        """A bundle of the cache, into which engines are built if they are not there, or not for this GPU and batch."""
        if self.backend != "tensorrt":
            return self.open(folder)
        try:
            return self.open(folder)
        except BundleError as error:
            if shown:
                say(f"{error} Doing it now, once.")
        with needs("export", "to build engines for the first time"):
            from actvar.export.plans.builder import build_plans
            from actvar.export.plans.engine_library import choose_target
            from actvar.export.plans.plugin_choice import chosen_plugins
        options, target = PlanOptions(), choose_target(None, None)
        low, best, high = options.batch
        try:
            options = replace(options, batch=(low, max(best, min(self.batch_size, high)), max(high, self.batch_size)))
        except ValueError as error:
            raise ArgumentError(f"batch_size {self.batch_size}: {error}.") from None
        choice = chosen_plugins(read_manifest(folder).model, target, options.batch[1])
        with wanted_bar("Building engines", shown) as progress:
            build_plans(folder, target, replace(options, plugins=choice.plugins), progress=progress)
        return self.open(folder)


def _chosen(named: NamedModel, decoder: Decoder | None, guidance_until: int | None, smooth: bool | None) -> NamedModel:
    """The model with one of its decoders, guided until a scale, mixing codes or not.

    Raises:
        ArgumentError: it is a bundle, which has another decoder, or whose graphs decide about guidance and mixing.
    """
    if decoder is not None:
        one_of("decoder", decoder, get_args(Decoder))
    if named.checkpoint:
        said = replace(
            named.checkpoint,
            decoder=decoder or named.checkpoint.decoder,
            guidance_until=guidance_until,
            smooth=smooth,
        )
        return replace(named, checkpoint=said)
    assert named.bundle
    if guidance_until is not None:
        raise ArgumentError(
            f"{named.name} is a bundle, whose graphs decide where guidance ends. Leave it out, or name a checkpoint."
        )
    if decoder is None and smooth is None:
        return named
    model = read_manifest(named.bundle).model
    if smooth not in (None, model.smooth):
        asked, graphs = ("smooth", "draw codes") if smooth else ("not smooth", "mix codes")
        raise ArgumentError(
            f"{named.name} is a bundle whose graphs {graphs}, and {asked} drawing was asked for. Leave it out, or name "
            "a checkpoint."
        )
    found = "small" if model.small_decoder else "full"
    if decoder not in (None, found):
        raise ArgumentError(
            f"{named.name} is a bundle with the {found} decoder, and the {decoder} one was asked for. "
            "Leave it out, or export the checkpoint again."
        )
    return named


@dataclass(frozen=True)
class _Wanted:
    """What a model is to be; the fields are arguments of `Pipeline.from_pretrained`."""

    precision: Precision | None
    accept: Accept


def _opened(named: NamedModel, engine: _Engine, wanted: _Wanted, shown: bool) -> tuple[PictureSource, Path | None]:
    """What draws a model, and the bundle that it draws from, if it does."""
    if named.bundle:
        _require_bundle(named, engine, wanted)
        folder = named.bundle.absolute()
        return engine.open(folder), folder
    assert named.checkpoint
    if engine.backend == "torch":
        source = engine.open_torch(named.checkpoint, wanted.precision)
        wanted.accept(source.model)
        return source, None
    folder = _exported(named.checkpoint, wanted, shown)
    try:
        return engine.open_own(folder, shown), folder
    except DamagedError as error:  # and nothing else: what is not for this use would not be after another export
        if shown:
            say(f"{error} It is only a copy: making it anew.")
    discard(folder)
    folder = _exported(named.checkpoint, wanted, shown)
    return engine.open_own(folder, shown), folder


def _require_bundle(named: NamedModel, engine: _Engine, wanted: _Wanted) -> None:
    """Hold a bundle to what was asked for.

    Raises:
        ArgumentError: it is something else.
    """
    assert named.bundle
    if engine.backend == "torch":
        raise ArgumentError(
            f"PyTorch draws with a checkpoint, and {named.name} is a bundle of graphs. Name the former."
        )
    manifest = read_manifest(named.bundle)
    if wanted.precision not in (None, manifest.precision):
        raise ArgumentError(
            f"{named.name} is a bundle in {manifest.precision}, and {wanted.precision} was asked for. "
            "Leave the precision out, or name another bundle or a checkpoint."
        )
    wanted.accept(manifest.model)


def _exported(checkpoint: Checkpoint, wanted: _Wanted, shown: bool) -> Path:
    """The bundle of a checkpoint in the cache, made now if it is not there."""
    with wanted_bar(f"Exporting {checkpoint.path.name}, once", shown) as progress:
        precision = wanted.precision or "fp32"
        folder = cached_bundle(checkpoint, precision, wanted.accept, progress)
    wanted.accept(read_manifest(folder).model)
    return folder
