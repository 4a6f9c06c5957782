# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Python that makes the pictures of the page: it stands under each of them and in its PNG file."""

import json
from dataclasses import replace
from typing import Any

from .samplers import OURS, SAMPLERS, WITH_ETA, Model, Settings


def of_samples(model: Model, settings: Settings) -> str:
    """The images of `sample`."""
    if settings.sampler in WITH_ETA:
        source, lines = f"eta={settings.eta}, seed={settings.seed}", []
    else:  # UniPC's step takes no generator
        source, shape = "latents=latents", ", ".join(str(n) for n in (1, *model.shape))
        generators = f"image_generators({settings.seed}, range({settings.num_images}))"
        lines = [f"latents = torch.cat([torch.randn({shape}, generator=g) for g in {generators}])"]
    lines.append(f"images = pipe(batch_size={settings.num_images}, {source}, {_shared(model, settings)}).images")
    return _with_pipeline(model, settings, lines)


def of_interpolation(model: Model, a: int | str, b: int | str, num_images: int, settings: Settings) -> str:
    """The images of `interpolate`; an end is a seed, or the name of a file."""
    files = {name: end for name, end in (("a", a), ("b", b)) if isinstance(end, str)}
    settings = replace(settings, num_images=1, clip=False if files else settings.clip)
    # a tensor would be taken for latents
    lines = [f"{_read(model, name, file)}.permute(0, 2, 3, 1).numpy()" for name, file in files.items()]
    ends = ", ".join(name if name in files else str(seed) for name, seed in (("a", a), ("b", b)))
    lines.append(f"images = pipe.interpolate({ends}, {num_images}, {_shared(model, settings)}).images")
    return _with_pipeline(model, settings, lines)


def of_round_trip(model: Model, settings: Settings, method: str, file: str) -> str:
    """The latents and the image of `invert`, of a picture in a file."""
    settings = replace(settings, num_images=1, clip=False)
    shared = _shared(model, settings)
    inverting, back = "", "eta=0.0"
    if method == "noise_record":
        inverting = f", eta={settings.eta or 1.0}, seed={settings.seed}"
        back = f"eta={settings.eta or 1.0}, variance_noise=found.variance_noise"
    elif method == "o_belm":
        back = f"method={_literal(method)}, prev_latents=found.prev_latents"
    lines = [
        _read(model, "picture", file),
        f"found = pipe.invert(picture, method={_literal(method)}{inverting}, {shared})",
        f"images = pipe(latents=found.latents, {back}, {shared}).images",
    ]
    return _with_pipeline(model, settings, lines)


def of_edit(model: Model, settings: Settings, file: str, strength: float, num_resamples: int, has_mask: bool) -> str:
    """The images of `edit`, of a picture in a file."""
    lines = [_read(model, "picture", file)]
    arguments = f"image=picture, strength={strength}, eta={settings.eta}, seed={settings.seed}"
    if has_mask:
        _, height, width = model.shape
        opened = 'PIL.Image.open("mask.png")  # as the page shows and saves it'
        lines += [f"mask = {opened}", f"mask = mask.resize({(width, height)}, PIL.Image.Resampling.NEAREST)"]
        arguments += f", mask=mask, num_resamples={num_resamples}"
    lines.append(f"images = pipe(batch_size={settings.num_images}, {arguments}, {_shared(model, settings)}).images")
    return _with_pipeline(model, settings, lines)


def _with_pipeline(model: Model, settings: Settings, lines: list[str]) -> str:
    """The lines after those that make the pipeline, and after the imports of all."""
    name, changes = SAMPLERS[settings.sampler].__name__, model.changes(settings)
    pipeline = [f"pipe = EtaDDIMPipeline.from_pretrained({_literal(model.name)})"]
    if changes or settings.sampler != OURS:
        arguments = "".join(f", {key}={_literal(value)}" for key, value in changes.items())
        pipeline.append(f"pipe.scheduler = {name}.from_config(pipe.scheduler.config{arguments})")
    code = "\n".join([*pipeline, *lines])
    imports = [f"import {module}" for module in ("PIL.Image", "torch") if f"{module}." in code]
    if settings.sampler != OURS:
        imports.append(f"from diffusers import {name}")
    used = [used for used in ("EtaDDIMPipeline", "EtaDDIMScheduler", "image_generators") if f"{used}" in code]
    imports.append(f"from ddim_scheduler import {', '.join(used)}")
    if "read_picture(" in code:
        imports.append("from ddim_scheduler.app.pictures import read_picture")
    return "\n".join([*imports, "", code])


def _literal(value: Any) -> str:
    """As `repr`, with the double quotes of this project."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _shared(model: Model, settings: Settings) -> str:
    arguments = model.arguments(settings)
    if not model.num_classes:
        del arguments["class_labels"], arguments["guidance_scale"]
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _read(model: Model, name: str, file: str) -> str:
    return f"{name} = read_picture({_literal(file)}, {model.shape})"
