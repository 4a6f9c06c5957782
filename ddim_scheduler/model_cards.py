# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The text of the README.md that a push to the Hub writes."""

import hashlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData


def scheduler_card(scheduler: Any, repo_id: str, license: str | None) -> str:
    """The card of a scheduler alone. It repeats no setting, so that it stays true when others are pushed."""
    name = type(scheduler).__name__
    is_flow = "FlowMatch" in name
    metadata = ModelCardData(library_name="diffusers", license=license, tags=["flow-matching" if is_flow else "ddim"])
    parts = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {repo_id.split('/')[-1]}",
        "A scheduler for flow models with the eta of [DDIM](https://arxiv.org/abs/2010.02502), with the settings in "
        "`scheduler_config.json`."
        if is_flow
        else "A scheduler for [DDIM](https://arxiv.org/abs/2010.02502), with the settings in `scheduler_config.json`.",
        "With the package ddim-scheduler:",
        f"```python\nfrom {type(scheduler).__module__} import {name}",
        f'scheduler = {name}.from_pretrained("{repo_id}")\n```',
    ]
    return "\n\n".join(parts) + "\n"


def pipeline_card(
    pipeline: Any,
    folder: Path,
    repo_id: str,
    variant: str | None,
    license: str | None,
    training_settings: dict[str, Any] | None,
) -> str:
    """The card of a model. Its steps are those of the scheduler's last grid, if one was set."""
    name, scheduler, unet = type(pipeline).__name__, pipeline.scheduler, pipeline._network
    is_conditional = unet.class_embedding is not None
    metadata = ModelCardData(
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        license=license,
        tags=["ddim", "ddpm"],
    )
    source = f'"{repo_id}"' if variant is None else f'"{repo_id}", variant="{variant}"'
    config, fitted = scheduler.config, sorted(map(int, scheduler.config.get("fitted_tables") or {}))
    steps = scheduler.num_inference_steps or min(50, config.num_train_timesteps)
    if fitted and config.timestep_spacing == "fitted":  # which takes no other number
        steps = scheduler.num_inference_steps if scheduler.num_inference_steps in fitted else fitted[-1]
    arguments, imports, latents = f"batch_size=4, num_inference_steps={steps}, seed=0", "", ""
    if is_conditional:
        arguments += ", class_labels=[0] * 4"
    if pipeline.image_channels not in (1, 3, 4):  # no picture
        arguments += ', output_type="np"'
    if unet.config.sample_size is None:
        size = 8 * 2 ** (len(unet.config.block_out_channels) - 1)
        imports = "import torch\n"
        latents = f"latents = torch.randn(4, {pipeline.image_channels}, {size}, {size})  # any height and width\n"
        arguments += ", latents=latents"
    kind = "A class-conditional" if is_conditional else "An unconditional"
    if pipeline.condition_channels:
        kind = f"{'A class-conditional' if is_conditional else 'An'} image-to-image"
        imports += "import PIL.Image\n"
        latents += 'condition = PIL.Image.open("condition.png")  # what the images are made from\n'
        arguments += ", condition=condition"
    sampling = f"{latents}images = pipe({arguments}).images"
    settings = {k: v for k, v in config.items() if not k.startswith("_") and not isinstance(v, list)}
    settings.pop("fitted_tables", None)

    # Line by line: in one long string, diffusers would take the lines that import something for this file's own.
    parts = [f"---\n{metadata.to_yaml()}\n---", f"# {repo_id.split('/')[-1]}"]
    if (folder / "sample.png").is_file():
        parts.append("![Samples](sample.png)")
    parts += [
        f"{kind} image model, trained as a "
        "[DDPM](https://arxiv.org/abs/2006.11239), sampled by [DDIM](https://arxiv.org/abs/2010.02502).",
        "## Use",
        "With the package ddim-scheduler:",
        f"```python\n{imports}from {type(pipeline).__module__} import {name}",
        f"pipe = {name}.from_pretrained({source})\n{sampling}\n```",
    ]
    if (folder / "pipeline.py").is_file():
        parts += [
            "Without it, by the code in this repository. Read the files `*.py`, here and in `scheduler/`, before you "
            "trust them:",
            f"```python\n{imports}from diffusers import DiffusionPipeline",
            f"pipe = DiffusionPipeline.from_pretrained(\n    {source}, "
            f'custom_pipeline="pipeline", trust_remote_code=True\n)\n{sampling}\n```',
        ]
    parts += ["## Scheduler", f"`{type(scheduler).__name__}`:", _json_block(settings)]
    if fitted:
        parts.append(f"Fitted samplers for N = {', '.join(map(str, fitted))}.")
    if scheduler.num_inference_steps is not None:
        parts.append(f"Timesteps of {steps} steps: {', '.join(str(t) for t in scheduler.timesteps.tolist())}.")
    if training_settings is not None:
        parts += ["## Training", _json_block(training_settings)]
    return "\n\n".join(parts) + "\n"


def signed(card: str) -> str:
    """The card with a last line by which a later push knows that nobody changed it."""
    checksum = hashlib.sha256(card.encode()).hexdigest()[:16]
    return f"{card}\n<!-- Written by ddim-scheduler and renewed with the model, unless it is changed. {checksum} -->\n"


def is_signed(path: Path) -> bool:
    card = path.read_text(encoding="utf-8", errors="replace")  # a person's may be in another encoding
    return card == signed(card.rpartition("\n<!--")[0])


def _json_block(settings: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(settings, indent=2, default=str)}\n```"
