# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The page, in Gradio: what is on it, and which function each part of it calls."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from ..pipelines.inversion import INVERSION_METHODS
from ..validation import check_integer
from . import editing, pictures, snippets
from .runs import Stopped
from .samplers import FITTED, MAX_IMAGES, OURS, WITH_ETA, Model, Samples, Settings, distance, exactly, reference, sample

RUNS_AT_ONCE = 2  # of all visitors; each run has all the processor's cores
KEPT_SECONDS = 24 * 3600  # pictures on the server's disk
NO_SAMPLER = "none"
ON_THE_WAY = 16  # pictures from one to another
PROGRESS = gr.Progress()  # for the signature of a function that shows its progress; each call gets one of its own
COMPARED = (OURS, "diffusers' DDIM", "DPM-Solver++", "UniPC")


@contextmanager
def messages() -> Iterator[None]:
    """What is refused within is a message on the page."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise gr.Error(str(error), title="This cannot be done", print_exception=False) from error
    except Stopped as error:
        raise gr.Error("The page was closed.", title="Stopped", print_exception=False) from error


async def in_thread(
    request: gr.Request, progress: gr.Progress, function: Callable[..., Any], model: Model, *args: Any
) -> Any:
    """
    Calls a function with a model first and a `report` last, and shows its steps on the page. It ends at its next step
    if the page cancels this or is closed.
    """
    with messages(), model.runs.one_of(request.session_hash) as stopped:

        def report(done: int, total: int):
            if stopped.is_set():
                raise Stopped
            progress((done, total), unit="steps")

        return await asyncio.to_thread(function, model, *args, report)


def build_page(model: Model) -> gr.Blocks:
    """The page of a model."""
    with gr.Blocks(title="ddim-scheduler", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)) as page:
        channels, height, width = model.shape
        kind = {1: "gray images", 3: "colour images", 4: "images with transparency"}[channels]
        gr.Markdown(f"# ddim-scheduler\n`{model.name}`: {kind} of {height}x{width} pixels.")
        with gr.Tab("Sample"):
            sample_tab(model, page)
        with gr.Tab("Compare"):
            compare_tab(model)
        with gr.Tab("Interpolate"):
            interpolate_tab(model)
        with gr.Tab("Invert and edit"):
            edit_tab(model)

        def leave(request: gr.Request):
            model.runs.stop_of(request.session_hash)

        page.unload(leave)
    return page


def sample_tab(model: Model, page: gr.Blocks):
    """Images of a seed; they are drawn again as soon as a setting is changed."""
    with gr.Row():
        with gr.Column(scale=1):
            seed = seed_box()
            count = slider(1, MAX_IMAGES, 16, 1, "Images")
            steps = steps_slider(model, 20)
            eta = slider(0, 1, 0, 0.05, "η", info="0: deterministic. 1: as random as DDPM.")
            grid = grid_choice(model)
            clip = gr.Checkbox(model.clips, label="Clip x₀")
            label, guidance = class_boxes(model)
            stop = gr.Button("Stop")
        with gr.Column(scale=2):
            picture = picture_box("Samples")
            summary = gr.Markdown()
    calls = gr.Markdown()
    strip = picture_box("x₀ as predicted, step by step", show_label=False)
    code = code_box()

    async def draw(seed, count, steps, eta, grid, clip, label, guidance, request: gr.Request, progress=PROGRESS):
        settings = Settings(seed, count, steps, eta, **of_class(label, guidance), timestep_spacing=grid, clip=clip)
        made = await in_thread(request, progress, sample, model, settings)
        python = snippets.of_samples(model, settings)
        shown = pictures.steps_of_strip(len(made.timesteps))
        return (
            pictures.with_settings(pictures.grid(made.images), model, settings, python),
            f"{len(made.timesteps)} calls of the network, {made.seconds:.1f} s",
            f"x₀ of the first images, as predicted by call {', '.join(str(k + 1) for k in shown)}",
            pictures.with_settings(pictures.strip(made.predictions), model, settings, python),
            python,
        )

    inputs = [seed, count, steps, eta, grid, clip, label, guidance]
    run = gr.on(
        [page.load, *(box.change for box in inputs)],
        draw,
        inputs,
        [picture, summary, calls, strip, code],
        show_progress_on=picture,
        **RUN,
    )
    stop.click(None, cancels=run)


def compare_tab(model: Model):
    """The same seeds through up to four samplers, and how far each is from where all timesteps lead."""
    with gr.Row():
        seed = seed_box()
        count = slider(1, 16, 4, 1, "Images")
        label, guidance = class_boxes(model)
        wants_distance = gr.Checkbox(
            True,
            label=f"Distance to {model.num_train_timesteps} steps",
            info="Root mean square over the pixels, in [0, 1]. It takes a while, the first time for these images.",
        )
    inputs, shown, notes = [seed, count, label, guidance, wants_distance], [], []
    with gr.Row():
        for k, name in enumerate(COMPARED):
            with gr.Column(min_width=200):
                sampler = gr.Dropdown(
                    [*model.samplers, NO_SAMPLER],
                    value=name if name in model.samplers else NO_SAMPLER,
                    label=f"Sampler {k + 1}",
                )
                is_fitted = name == OURS and bool(model.fitted_steps)
                steps = steps_slider(model, min(model.fitted_steps, key=lambda n: abs(n - 10)) if is_fitted else 10)
                eta = slider(0, 1, 0, 0.05, "η", info=f"Of {' and '.join(WITH_ETA)}")
                grid = grid_choice(model, FITTED if is_fitted else None)
                shown.append(picture_box(f"Samples {k + 1}", show_label=False))
                notes.append(gr.Markdown())
            inputs += [sampler, steps, eta, grid]
    with gr.Row():
        start = gr.Button("Compare", variant="primary")
        stop = gr.Button("Stop")
    converged = picture_box(f"DDIM with all {model.num_train_timesteps} steps", height=300)
    code = code_box()

    async def compare(request: gr.Request, progress=PROGRESS, *values) -> AsyncIterator[dict]:
        seed, count, label, guidance, wants_distance, *columns = values
        shared = Settings(seed, count, **of_class(label, guidance))
        asked: dict[int, Settings] = {}
        for k in range(len(COMPARED)):
            name, steps, eta, grid = columns[4 * k : 4 * k + 4]
            if name != NO_SAMPLER:
                asked[k] = replace(shared, sampler=name, num_inference_steps=steps, eta=eta, timestep_spacing=grid)
        with messages():
            for settings in asked.values():
                model.check(settings)
        yield dict.fromkeys([*shown, *notes, converged])
        made, code_of_all = {}, []
        for k, settings in asked.items():
            made[k] = result = await in_thread(request, progress, sample, model, settings)
            python = snippets.of_samples(model, settings)
            code_of_all.append(f"# {settings.sampler}\n{python}")
            picture = pictures.with_settings(pictures.grid(result.images), model, settings, python)
            yield {shown[k]: picture, notes[k]: note_of(result), code: "\n\n".join(code_of_all)}
        if not wants_distance:
            return
        exact = await in_thread(request, progress, reference, model, shared)
        settings = exactly(model, shared)
        picture = pictures.with_settings(pictures.grid(exact), model, settings, snippets.of_samples(model, settings))
        distances = {
            notes[k]: f"{note_of(result)}, **distance {distance(result.images, exact):.4f}**"
            for k, result in made.items()
        }
        yield {converged: picture, **distances}

    run = start.click(compare, inputs, [*shown, *notes, converged, code], show_progress_on=converged, **RUN)
    stop.click(None, cancels=run)


def interpolate_tab(model: Model):
    """The way from one seed or picture to another."""
    with gr.Row():
        with gr.Column():
            seed_a = seed_box("From seed", 0)
            file_a = upload_box("or from a picture")
        with gr.Column():
            seed_b = seed_box("To seed", 1)
            file_b = upload_box("or to a picture")
        with gr.Column():
            steps = steps_slider(model, 20)
            grid = grid_choice(model)
            label, guidance = class_boxes(model)
            start = gr.Button("Interpolate", variant="primary")
            stop = gr.Button("Stop")
    row = picture_box("From one to the other", show_label=False)
    state = gr.State()
    place = slider(1, ON_THE_WAY, ON_THE_WAY // 2, 1, "Place on the way")
    one = picture_box("There", show_label=False, height=256)
    code = code_box()

    async def interpolate(
        seed_a, file_a, seed_b, file_b, steps, grid, place, label, guidance, request: gr.Request, progress=PROGRESS
    ):
        settings = Settings(num_inference_steps=steps, timestep_spacing=grid, **of_class(label, guidance))
        check_place(place)
        a, b = [
            seed if file is None else await read(file, model) for seed, file in ((seed_a, file_a), (seed_b, file_b))
        ]
        images = await in_thread(request, progress, editing.interpolate, model, a, b, ON_THE_WAY, settings)
        a, b = (seed if file is None else Path(file).name for seed, file in ((seed_a, file_a), (seed_b, file_b)))
        python = snippets.of_interpolation(model, a, b, ON_THE_WAY, settings)
        picture = pictures.grid(images, columns=ON_THE_WAY, size=2 * pictures.SHOWN_SIZE)
        others = {"a": a, "b": b, "n": ON_THE_WAY}
        pictures.with_settings(picture, model, settings, python, **others)
        made = (images, settings, python, others)
        return picture, made, at(place, made), python

    def check_place(place: int):
        with messages():
            check_integer("place", place, 1, ON_THE_WAY)

    def at(place: int, made: tuple | None):
        """The picture at a place, the first is 1."""
        if made is None:
            return None
        check_place(place)
        images, settings, python, others = made
        picture = pictures.grid(images[place - 1 : place])
        return pictures.with_settings(picture, model, settings, f"{python}\nimage = images[{place - 1}]", **others)

    inputs = [seed_a, file_a, seed_b, file_b, steps, grid, place, label, guidance]
    run = start.click(interpolate, inputs, [row, state, one, code], show_progress_on=row, **RUN)
    stop.click(None, cancels=run)
    place.change(at, [place, state], one, show_progress="hidden", concurrency_limit=None)


def edit_tab(model: Model):
    """A picture turned into noise and back, varied, or painted anew where someone has drawn."""
    _, height, width = model.shape
    with gr.Row():
        with gr.Column():
            file = upload_box("A picture")
            seed = seed_box()
            taken = gr.Button("Take a sample of the model")
        with gr.Column():
            editor = gr.ImageEditor(
                label="As the model sees it",
                type="numpy",
                sources=[],
                transforms=[],
                layers=False,
                brush=gr.Brush(default_size=48, colors=["#ff0000"], color_mode="fixed"),
                format="png",
                buttons=["download"],
            )
            gr.Markdown("Draw where it is to be painted anew. Without a drawing, all of it is varied.")
        with gr.Column():
            steps = steps_slider(model, 20)
            grid = grid_choice(model)
            label, guidance = class_boxes(model)
            stop = gr.Button("Stop")
    with gr.Row():
        with gr.Column():
            method = gr.Dropdown(INVERSION_METHODS, label="Method of the inversion")
            invert_button = gr.Button("Invert", variant="primary")
            with gr.Row():
                latents = picture_box("Its noise")
                back = picture_box("Back from the noise")
            found_note = gr.Markdown()
        with gr.Column():
            with gr.Row():
                strength = slider(0.05, 1, 0.8, 0.05, "Strength", info="How much is replaced")
                eta = slider(0, 1, 0, 0.05, "η", info="Noise of the steps")
            with gr.Row():
                resamples = slider(1, 10, 1, 1, "Resamples", info="Of each step within a drawing")
                count = slider(1, 16, 4, 1, "Variations", info="Number of pictures")
            edit_button = gr.Button("Edit", variant="primary")
            with gr.Row():
                varied = picture_box("Variations")
                painted = picture_box("Painted anew: what is white")
    code = code_box()

    async def take(seed, steps, grid, label, guidance, request: gr.Request, progress=PROGRESS):
        settings = Settings(seed, 1, steps, timestep_spacing=grid, **of_class(label, guidance))
        made = await in_thread(request, progress, sample, model, settings)
        picture = pictures.grid(made.images, size=width)  # its own pixels, which are not scaled when they are read
        return pictures.with_settings(picture, model, settings, snippets.of_samples(model, settings))

    async def invert(file, seed, steps, grid, method, label, guidance, request: gr.Request, progress=PROGRESS):
        settings = Settings(seed, 1, steps, timestep_spacing=grid, **of_class(label, guidance))
        picture = await read(file, model)
        found = await in_thread(request, progress, editing.invert, model, picture, settings, method)
        name = Path(file).name
        python = snippets.of_round_trip(model, settings, method, name)
        text = (
            f"The picture comes back with a root mean square difference of **{found.distance:.2g}**, the largest is "
            f"{found.largest:.2g} (of pixels in [0, 1]). The inversion called the network {found.model_calls} times. "
            f"Standard deviation of the noise: {found.latents.std():.2f}."
        )
        shown = [pictures.grid(image) for image in (pictures.noise(found.latents), found.image)]
        for image in shown:
            pictures.with_settings(image, model, settings, python, picture=name, method=method)
        return *shown, text, python

    async def edit(
        file, drawn, seed, steps, grid, strength, eta, resamples, count, label, guidance, request: gr.Request,
        progress=PROGRESS,
    ):  # fmt: skip
        settings = Settings(seed, count, steps, eta, timestep_spacing=grid, **of_class(label, guidance))
        picture = await read(file, model)
        mask = pictures.read_mask(drawn["layers"] if drawn else [], height, width)
        made = await in_thread(request, progress, editing.edit, model, picture, mask, settings, strength, resamples)
        name = Path(file).name
        python = snippets.of_edit(model, settings, name, strength, resamples, mask is not None)
        others = {"picture": name, "strength": strength, "num_resamples": resamples}
        shown = [pictures.grid(images) for images in (made, torch.ones(1, 1, height, width) if mask is None else mask)]
        for image in shown:
            pictures.with_settings(image, model, settings, python, **others)
        return *shown, python

    async def show(file: str | None):
        return None if file is None else pictures.grid(await read(file, model)).convert("RGB")

    file.change(show, file, editor, show_progress="hidden")
    taking = taken.click(take, [seed, steps, grid, label, guidance], file, **RUN)
    inverting = invert_button.click(
        invert, [file, seed, steps, grid, method, label, guidance], [latents, back, found_note, code], **RUN
    )
    inputs = [file, editor, seed, steps, grid, strength, eta, resamples, count, label, guidance]
    run = edit_button.click(edit, inputs, [varied, painted, code], **RUN)
    stop.click(None, cancels=[taking, inverting, run])


RUN: dict[str, Any] = {
    "show_progress": "minimal",
    "trigger_mode": "always_last",  # what is changed during a run is drawn after it
    "concurrency_id": "model",
    "concurrency_limit": RUNS_AT_ONCE,
}


def as_typed(box: Any) -> Any:
    """A box whose number comes as it was typed: what cannot be is said, by its name, where the number is used."""
    vars(box)["preprocess"] = lambda value: int(value) if isinstance(value, float) and value.is_integer() else value
    return box


def slider(low: float, high: float, value: float, step: float, label: str, **arguments: Any) -> gr.Slider:
    return as_typed(gr.Slider(low, high, value, step=step, label=label, **arguments))


def seed_box(label: str = "Seed", value: int = 0) -> gr.Number:
    return as_typed(gr.Number(value, label=label, precision=0, minimum=0))


def steps_slider(model: Model, value: int) -> gr.Slider:
    most = min(100, model.num_train_timesteps)
    return slider(1, most, min(value, most), 1, "Steps")


def grid_choice(model: Model, value: str | None = None) -> gr.Dropdown:
    steps = ", ".join(str(n) for n in model.fitted_steps)
    info = f"fitted: for {steps} steps, η = 0" if steps else None
    return gr.Dropdown(model.spacings, value=value or model.plain_spacing, label="Grid of timesteps", info=info)


def class_boxes(model: Model) -> tuple[gr.Dropdown, gr.Slider]:
    """The class, and guidance towards it; hidden for a model without classes."""
    has_classes = model.num_classes > 0
    choices = [("all in turn", -1), *((str(k), k) for k in range(model.num_classes))]
    return (
        gr.Dropdown(choices, value=-1, label="Class", visible=has_classes),
        slider(0, 10, 1, 0.5, "Guidance", info="1: none", visible=has_classes),
    )


def of_class(label: int, guidance: float) -> dict[str, Any]:
    """The settings of `class_boxes`."""
    return {"class_label": None if label == -1 else label, "guidance_scale": guidance}


def picture_box(label: str, **arguments: Any) -> gr.Image:
    return gr.Image(label=label, format="png", interactive=False, buttons=["download", "fullscreen"], **arguments)


def upload_box(label: str) -> gr.Image:
    """Gives the path of the file."""
    box = gr.Image(
        label=label, type="filepath", format="png", sources=["upload", "clipboard"], height=300, buttons=["download"]
    )
    # Gradio's own would convert the file, or fail with a message that nobody understands; a derived class would make
    # Gradio write a file beside this one
    vars(box)["preprocess"] = lambda payload: None if payload is None else payload.path
    return box


def code_box() -> gr.Code:
    return gr.Code("# comes with the pictures", language="python", label="The same in Python", interactive=False)


async def read(file: str | None, model: Model) -> torch.Tensor:
    """The uploaded picture, as the model sees it."""
    with messages():
        if file is None:
            raise ValueError("There is no picture yet: upload one, or take a sample of the model.")
        return await asyncio.to_thread(pictures.read_picture, file, model.shape)


def note_of(made: Samples) -> str:
    return f"{len(made.timesteps)} calls, {made.seconds:.1f} s"
