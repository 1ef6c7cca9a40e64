"""A model as a folder that the Hub takes: config.json, README.md as its card, and a bundle or a checkpoint.

What is in it is enough for `Pipeline.from_pretrained` to draw the same bytes. Nothing here loads PyTorch, but to write
the checkpoint of a model that PyTorch draws with.
"""

import json
from pathlib import Path

from actvar import __version__
from actvar.bundle.manifest import EXPORT_AGAIN, PLANS_FOLDER, Manifest, write_manifest
from actvar.bundle.plans import BUILD_AGAIN, plan_folders, read_plans, write_plans
from actvar.checkpoint.folder import CHECKPOINT_FILE
from actvar.config import ModelConfig
from actvar.errors import UsageError
from actvar.export.bundle_folder import folder_written_whole
from actvar.files import FileEntry, read_verified
from actvar.hub import CONFIG_FILE
from actvar.runtime.pictures import PictureSource

LIBRARY, CARD_FILE = "actvar-trt", "README.md"

_CARD = """\
---
library_name: {library}
pipeline_tag: unconditional-image-generation
tags:
{tags}
---

# {title}

{what}. It draws {side}×{side} pictures of {classes} classes, scale by scale. Written by ActVAR-TRT {version}; to draw
with it, install `{library}`.

```python
from actvar import Pipeline

pipe = Pipeline.from_pretrained("{title}")  # this folder, or the repository that it was uploaded to
images = pipe(class_labels=[0, 1], {strength}seed=7).images
images[0].save("picture.png")
```

| | |
|---|---|
| form | {form} |
| weights | {source} |
| token maps | {maps} |
| drawn with, unless told otherwise | {guidance}, top-k {top_k}, top-p {top_p:g} |

This card names no licence. Add a `license:` line to its head, as the owner of the weights says.
"""


def save_bundle(bundle: Path, manifest: Manifest, target: Path) -> None:
    """Write a bundle, with its plans, as such a folder. Every file is verified on the way.

    Args:
        bundle: where its files are; a snapshot in the Hub's cache will do.
        manifest: what they must be.
        target: the folder to write; a bundle that is there is replaced.

    Raises:
        BundleError: a file is missing or altered, or the target is no bundle or cannot be written.
    """
    with folder_written_whole(target) as unfinished:
        for entry in manifest.files:
            _copy(bundle, entry, unfinished, EXPORT_AGAIN)
        for plans in plan_folders(bundle):
            _copy_plans(plans, unfinished / PLANS_FOLDER / plans.name)
        _describe(unfinished, target, manifest.model, f"a bundle in {manifest.precision}", manifest.source, "onnx")
        write_manifest(unfinished, manifest)


def save_network(source: PictureSource, target: Path) -> None:
    """Write what PyTorch draws with as such a folder; the arguments and errors are those of `save_bundle`.

    Raises:
        UsageError: it is not PyTorch on the CPU that draws, or it draws with a small decoder, as a checkpoint does not
            by itself.
        CheckpointError: a weight is not finite.
    """
    from actvar.drawers import EagerModel
    from actvar.runtime.backends.torch_source import TorchSource

    if not isinstance(source, TorchSource):
        raise UsageError("What draws is neither a bundle nor a model in PyTorch, so it cannot be saved.")
    if not isinstance(source.drawer, EagerModel):
        raise UsageError("PyTorch on a GPU holds weights in a form of its own. Open the model on the CPU to save it.")
    if source.model.small_decoder:
        raise UsageError(
            "A checkpoint draws with its full decoder until it is told otherwise, so it would not draw as this does. "
            "Save a bundle: open the model with another backend than torch."
        )
    import torch

    from actvar.checkpoint.own import save_model

    with folder_written_whole(target) as unfinished:
        save_model(source.drawer.network, unfinished / CHECKPOINT_FILE, torch.float32)
        _describe(unfinished, target, source.model, "a checkpoint in fp32", "a checkpoint", "safetensors")


def _copy_plans(source: Path, target: Path) -> None:
    """The plans of one GPU."""
    manifest = read_plans(source)
    target.mkdir(parents=True)
    for spec in manifest.plans.values():
        for entry in (spec.entry, spec.log):
            _copy(source, entry, target, BUILD_AGAIN)
    write_plans(target, manifest)


def _copy(source: Path, entry: FileEntry, target: Path, advice: str) -> None:
    with (target / entry.file).open("xb") as file:
        read_verified(source / entry.file, entry, advice, file.write)


def _describe(unfinished: Path, target: Path, model: ModelConfig, form: str, source: str, kind: str) -> None:
    """The configuration and the card."""
    config = {"library_name": LIBRARY, "library_version": __version__, "model_type": "actvar", "model": model.to_dict()}
    (unfinished / CONFIG_FILE).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    name = "ActVAR" if model.activation else "VAR"
    tags = (name.lower(), "visual-autoregressive", "class-conditional", "image-generation", kind)
    card = _CARD.format(
        library=LIBRARY,
        tags="\n".join(f"- {tag}" for tag in tags),
        title=target.absolute().name,
        what=f"{'An' if model.activation else 'A'} {name} of depth {model.depth}",
        side=model.picture_size,
        classes=model.num_classes,
        version=__version__,
        form=form,
        source=source.replace("|", "\\|"),
        maps=" ".join(map(str, model.schedule.patch_nums)),
        strength=f"guidance_scale={model.sampling.cfg:g}, " if model.is_guided else "",
        guidance=f"guidance {model.sampling.cfg:g}" if model.is_guided else "no guidance, which it has no need of",
        top_k=model.sampling.top_k,
        top_p=model.sampling.top_p,
    )
    (unfinished / CARD_FILE).write_text(card, encoding="utf-8")
