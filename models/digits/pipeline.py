# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""Unconditional image generation with DDIM (https://arxiv.org/abs/2010.02502).

This file needs diffusers, huggingface_hub, numpy and torch alone, so that it can be shipped inside a model repository.
"""

import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import CommitInfo, ModelCardData, create_repo, file_exists, model_info, upload_folder

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("pil", "np", "pt", "latent")
NOT_UPLOADED = ["checkpoint-*/*", "unfinished-*/*", "logs/*", ".*", "*/.*"]  # a training's own files, hidden ones


def image_generators(seed: int, indices: Iterable[int]) -> list[torch.Generator]:
    """
    One CPU generator for each image, seeded by (seed, index) alone: image k is the same on any device, in any batch.

    Args:
        seed (`int`): Seed of the whole set of images, at least 0.
        indices (iterable of `int`): Numbers of the images in the set, each at least 0.
    """
    states = [np.random.SeedSequence([seed, k]).generate_state(1, np.uint64) for k in indices]
    return [torch.Generator().manual_seed(int(state[0]) >> 1) for state in states]


class EtaDDIMPipeline(DiffusionPipeline):
    r"""
    Generates images with a `UNet2DModel` that was trained as a DDPM.

    Args:
        unet (`UNet2DModel`):
            Predicts epsilon, x_0 or v (as the scheduler's `prediction_type` says) from x_t and t.
        scheduler (`SchedulerMixin`):
            Kept as it is if its `step` takes `eta`; any other, a `DDPMScheduler` for instance, is converted by
            `EtaDDIMScheduler.from_config`.
    """

    # the package, also for a copy of this file that was loaded from the Hub
    __module__ = "ddim_scheduler"
    # read now: diffusers loads all such files by one path, so that another version may be there later
    _code = Path(__file__).read_bytes()
    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["latents"]

    def __init__(self, unet: UNet2DModel, scheduler: SchedulerMixin):
        super().__init__()
        if "eta" not in inspect.signature(scheduler.step).parameters:
            name = type(scheduler).__name__
            try:
                # not by a statement: diffusers asks everyone who loads this file from the Hub for what it imports
                package = importlib.import_module("ddim_scheduler")
            except ModuleNotFoundError:
                raise ImportError(
                    f"`scheduler` is a {name}, which takes no eta: its conversion needs the package ddim-scheduler."
                ) from None
            logger.info(f"{name} takes no eta: the pipeline samples with EtaDDIMScheduler instead.")
            scheduler = package.EtaDDIMScheduler.from_config(scheduler.config)
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        eta: float | None = None,
        timesteps: list[int] | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        class_labels: list[int] | torch.Tensor | None = None,
        use_clipped_model_output: bool | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["EtaDDIMPipeline", int, torch.Tensor, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' spelling; read only)
    ) -> ImagePipelineOutput | tuple:
        r"""
        Samples images from noise.

        Args:
            batch_size (`int`, defaults to 1):
                Number B of images, at least 1.
            num_inference_steps (`int`, defaults to 50):
                Number of model calls, at least 1. Not used if `timesteps` are given.
            eta (`float`, *optional*):
                eta of the paper's eq. (16), in [0, 1]: 0 is deterministic, 1 is DDPM's ancestral sampling. The
                scheduler's own value if not given.
            timesteps (`list[int]`, *optional*):
                The timesteps to visit, strictly decreasing, if the scheduler takes them.
            seed (`int`, *optional*):
                Gives image k a generator of its own, seeded by (seed, k): the same image for any batch size and device.
            generator (`torch.Generator` or a list of B, *optional*):
                Source of all noise, instead of `seed`. `image_generators` makes such a list.
            latents (`torch.Tensor` of shape `(B, C, H, W)`, *optional*):
                The starting noise x_T, standard normal.
            class_labels (`list[int]` or `torch.Tensor` of B integers, *optional*):
                Classes, for a class-conditional UNet.
            use_clipped_model_output (`bool`, *optional*):
                Re-derive epsilon from the clipped x_0. The scheduler's own value if not given.
            output_type (`str`, defaults to `"pil"`):
                `"pil"`: a list of PIL images; `"np"`: float32 array `(B, H, W, C)` in [0, 1]; `"pt"`: float32 tensor
                `(B, C, H, W)` in [0, 1]; `"latent"`: x_0 as the sampler left it, about [-1, 1].
            return_dict (`bool`, defaults to `True`):
                Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipeline, step, timestep, tensors)` after each step. It may return a dictionary with
                `latents` to go on with.
            callback_on_step_end_tensor_inputs (`list[str]`, defaults to `["latents"]`):
                Names of the tensors that the callback is given.

        Returns:
            `ImagePipelineOutput` or `tuple`: the images.

        Raises:
            ValueError, TypeError: For an argument of wrong value, shape or type, before any work is done.

        Example:

        ```py
        >>> from ddim_scheduler import EtaDDIMPipeline

        >>> pipe = EtaDDIMPipeline.from_pretrained("outputs/digits")
        >>> images = pipe(batch_size=4, num_inference_steps=20, seed=0).images
        ```
        """
        shape = self.check_inputs(
            batch_size,
            num_inference_steps,
            eta,
            timesteps,
            seed,
            generator,
            latents,
            class_labels,
            use_clipped_model_output,
            output_type,
            callback_on_step_end,
            callback_on_step_end_tensor_inputs,
        )
        device = self._execution_device
        if seed is not None:
            generator = image_generators(seed, range(batch_size))

        # 1. the grid: on the host for the scheduler, on the device for the model, so that no step makes the host wait
        if timesteps is None:
            self.scheduler.set_timesteps(num_inference_steps)
        else:
            self.scheduler.set_timesteps(timesteps=timesteps)
        steps = list(zip(self.scheduler.timesteps, self.scheduler.timesteps.to(device), strict=True))

        # 2. x_T; the state stays float32 whatever the model's dtype
        if latents is None:
            latents = randn_tensor(shape, generator, device, torch.float32) * self.scheduler.init_noise_sigma
        latents = latents.to(device, torch.float32)
        if class_labels is not None:
            class_labels = torch.as_tensor(class_labels, device=device)

        # 3. the loop
        given = {"eta": eta, "use_clipped_model_output": use_clipped_model_output, "generator": generator}
        step_kwargs = {name: value for name, value in given.items() if value is not None}
        for i, (t, t_on_device) in enumerate(self.progress_bar(steps)):
            model_input = self.scheduler.scale_model_input(latents, t).to(self.unet.dtype)
            model_output = self.unet(model_input, t_on_device, class_labels).sample
            latents = self.scheduler.step(model_output, t, latents, **step_kwargs).prev_sample
            if callback_on_step_end is not None:
                tensors = dict.fromkeys(callback_on_step_end_tensor_inputs, latents)
                returned = callback_on_step_end(self, i, t, tensors)
                if isinstance(returned, dict) and "latents" in returned:
                    latents = returned["latents"].to(device, torch.float32)

        # 4. the images
        images: Any = latents
        if output_type != "latent":
            images = (images / 2 + 0.5).clamp(0, 1)
        if output_type in ("np", "pil"):
            images = images.permute(0, 2, 3, 1).cpu().numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)

        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return ImagePipelineOutput(images=images)

    def check_inputs(
        self,
        batch_size,
        num_inference_steps,
        eta,
        timesteps,
        seed,
        generator,
        latents,
        class_labels,
        use_clipped_model_output,
        output_type,
        callback_on_step_end,
        callback_on_step_end_tensor_inputs,
    ) -> tuple[int, int, int, int]:
        """Checks the arguments of a call and returns the shape of its latents."""
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_inference_steps", num_inference_steps, 1),
            ("seed", 0 if seed is None else seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"`{name}` must be an integer, but is {value!r}.")
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}, but is {value}.")
        if eta is not None and (isinstance(eta, bool) or not isinstance(eta, int | float)):
            raise TypeError(f"`eta` must be a number, but is {eta!r}.")
        if eta is not None and not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be in [0, 1], but is {eta!r}.")
        if use_clipped_model_output not in (None, True, False):
            raise TypeError(
                f"`use_clipped_model_output` must be True, False or None, but is {use_clipped_model_output!r}."
            )
        if timesteps is not None and "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            raise ValueError(f"`timesteps` are given, but {type(self.scheduler).__name__} takes none.")
        if seed is not None and generator is not None:
            raise ValueError("`seed` and `generator` cannot both be given: the noise has one source.")
        generators = generator if isinstance(generator, list) else [generator]
        if generator is not None and not all(isinstance(g, torch.Generator) for g in generators):
            raise TypeError(f"`generator` must be a torch.Generator or a list of them, but is {generator!r}.")
        if isinstance(generator, list) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must hold `batch_size` = {batch_size} generators, but holds {len(generator)}."
            )

        if latents is not None and not (isinstance(latents, torch.Tensor) and latents.ndim == 4):
            raise TypeError(f"`latents` must be a tensor of shape (B, C, H, W), but are {latents!r}.")
        size = self.unet.config.sample_size
        if size is None and latents is None:
            raise ValueError("`latents` must be given: the UNet's `sample_size` is None, so that the size is unknown.")
        if isinstance(size, int):
            size = (size, size)
        height, width = latents.shape[-2:] if latents is not None and size is None else size
        channels = self.unet.config.in_channels
        shape = (batch_size, channels, height, width)
        if latents is not None and tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have the shape {shape}, but have {tuple(latents.shape)}.")

        if (class_labels is None) != (self.unet.class_embedding is None):
            raise ValueError(
                f"`class_labels` must be given exactly if the UNet is class-conditional, but are {class_labels!r}."
            )
        if class_labels is not None and tuple(torch.as_tensor(class_labels).shape) != (batch_size,):
            raise ValueError(f"`class_labels` must hold `batch_size` = {batch_size} labels, but are {class_labels!r}.")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` must be one of {OUTPUT_TYPES}, but is {output_type!r}.")
        if output_type == "pil" and channels not in (1, 3, 4):
            raise ValueError(f"`output_type` 'pil' needs 1, 3 or 4 channels, but the UNet has {channels}; use 'np'.")
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise TypeError(f"`callback_on_step_end` must be callable, but is {callback_on_step_end!r}.")
        names = callback_on_step_end_tensor_inputs
        if not isinstance(names, list) or not set(names) <= set(self._callback_tensor_inputs):
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be of {self._callback_tensor_inputs}, but is {names!r}."
            )
        return shape

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        sample_image: PIL.Image.Image | None = None,
        training_settings: dict[str, Any] | None = None,
    ) -> CommitInfo | None:
        """
        Saves the pipeline, with the code that loads it where the package ddim-scheduler is not installed: this file as
        `pipeline.py`, and the scheduler's in the scheduler's folder.

        `EtaDDIMPipeline.from_pretrained` and, after `import ddim_scheduler`, `DiffusionPipeline.from_pretrained` use
        the package and never run that code; `DiffusionPipeline.from_pretrained(..., custom_pipeline="pipeline",
        trust_remote_code=True)` runs it.

        Args:
            save_directory (`str` or `os.PathLike`):
                The folder; it is made if it is not there.
            safe_serialization (`bool`, defaults to `True`):
                Whether to write safetensors or pickles.
            variant (`str`, *optional*):
                Goes into the names of the weight files: `diffusion_pytorch_model.<variant>.safetensors`.
            max_shard_size (`int` or `str`, *optional*):
                Largest size of a weight file, in bytes or as `"5GB"`.
            push_to_hub (`bool`, defaults to `False`):
                Whether to upload the folder to the Hub, with all that is in it but a training's checkpoints and logs.
                The arguments below are for that, and a model card `README.md` is written with it: how to load the
                model, with the number of steps that were set last, and the scheduler's settings. One that is in the
                folder or in the repository already is kept, whoever wrote it. Hidden files are not uploaded.
            repo_id (`str`, *optional*):
                The repository; it is made if it is not there. In your namespace with the folder's name if not given.
            commit_message (`str`, *optional*):
                `"Upload EtaDDIMPipeline"` if not given.
            private (`bool`, *optional*):
                Whether to make the repository private. Your account's default if not given.
            token (`str`, *optional*):
                The token to use instead of the stored one.
            create_pr (`bool`, defaults to `False`):
                Whether to open a pull request instead of committing.
            license (`str`, *optional*):
                The licence of the weights for the card, `"apache-2.0"` for instance. None is named if not given.
            sample_image (`PIL.Image.Image`, *optional*):
                A picture for the card, saved as `sample.png`. If not given, a `sample.png` that is in the folder.
            training_settings (`dict`, *optional*):
                How the model was trained, for the card. If not given, a `training_args.json` that is in the folder, as
                the training script writes it.

        Returns:
            `CommitInfo` or `None`: the commit of a push.

        Raises:
            FileExistsError: If `save_directory` is a file.
            ValueError: For a push, before anything is written, if `private` is `True` and the repository is a public
                one, or if the folder holds a link that leads out of it.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        if push_to_hub:  # the checks come before the work
            for path in folder.rglob("*"):
                if not path.resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"`save_directory` holds {path}, a link out of it, to {path.resolve()}.")
            repo_id = create_repo(repo_id or folder.resolve().name, private=private, token=token, exist_ok=True).repo_id
            if private and not model_info(repo_id, token=token).private:
                raise ValueError(f"`private` is True, but the repository {repo_id} is there already, and is public.")

        # An older save gives way. Its index goes first and the new one comes last: half a save cannot be loaded.
        for name in ("model_index.json", "pipeline.py", *_weight_files(variant)):
            for path in folder.glob(name):
                path.unlink()
        super().save_pretrained(
            str(folder), safe_serialization=safe_serialization, variant=variant, max_shard_size=max_shard_size
        )
        code = vars(type(self)).get("_code")  # that of a subclass is elsewhere
        if code is not None:
            (folder / "pipeline.py").write_bytes(code)
        if repo_id is None or not push_to_hub:
            return None

        if sample_image is not None:
            sample_image.save(folder / "sample.png")
        card = folder / "README.md"
        if not card.exists() and not file_exists(repo_id, "README.md", token=token):
            record = folder / "training_args.json"
            if training_settings is None and record.is_file():
                training_settings = json.loads(record.read_text())
            card.write_text(self._model_card(folder, repo_id, variant, license, training_settings), encoding="utf-8")
        elif license is not None or training_settings is not None:
            logger.warning(f"{repo_id} has a README.md, which is kept: `license` and `training_settings` are not used.")
        return upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            ignore_patterns=NOT_UPLOADED,
            delete_patterns=_weight_files(variant),
            token=token,
            commit_message=commit_message or f"Upload {type(self).__name__}",
            create_pr=create_pr,
        )

    def push_to_hub(self, repo_id: str, commit_message: str | None = None, **kwargs: Any) -> CommitInfo | None:
        """
        Uploads the pipeline, its code and a model card to the Hub.

        Args:
            repo_id (`str`): The repository, `"user/name"`; it is made if it is not there.
            commit_message (`str`, *optional*): `"Upload EtaDDIMPipeline"` if not given.
            kwargs: The other arguments of `save_pretrained`: `private`, `token`, `license`, `sample_image`...

        Returns:
            `CommitInfo`: the commit.

        Raises:
            ValueError: If `private` is `True` and the repository is a public one.
        """
        with tempfile.TemporaryDirectory() as folder:
            return self.save_pretrained(
                folder, push_to_hub=True, repo_id=repo_id, commit_message=commit_message, **kwargs
            )

    def _model_card(
        self,
        folder: Path,
        repo_id: str,
        variant: str | None,
        license: str | None,
        training_settings: dict[str, Any] | None,
    ) -> str:
        """The text of README.md. Its steps are those of the scheduler's last grid, if one was set."""
        name, scheduler = type(self).__name__, self.scheduler
        is_conditional = self.unet.class_embedding is not None
        metadata = ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation",
            license=license,
            tags=["ddim", "ddpm"],
        )
        source = f'"{repo_id}"' if variant is None else f'"{repo_id}", variant="{variant}"'
        steps = scheduler.num_inference_steps or min(50, scheduler.config.num_train_timesteps)
        labels = ", class_labels=[0] * 4" if is_conditional else ""
        sampling = f"images = pipe(batch_size=4, num_inference_steps={steps}, seed=0{labels}).images"
        settings = {k: v for k, v in scheduler.config.items() if not k.startswith("_") and not isinstance(v, list)}

        # Line by line: in one long string, diffusers would take the lines that import something for this file's own.
        parts = [f"---\n{metadata.to_yaml()}\n---", f"# {repo_id.split('/')[-1]}"]
        if (folder / "sample.png").is_file():
            parts.append("![Samples](sample.png)")
        parts += [
            f"{'A class-conditional' if is_conditional else 'An unconditional'} image model, trained as a "
            "[DDPM](https://arxiv.org/abs/2006.11239), sampled by [DDIM](https://arxiv.org/abs/2010.02502).",
            "## Use",
            "With the package ddim-scheduler:",
            f"```python\nfrom {type(self).__module__} import {name}",
            f"pipe = {name}.from_pretrained({source})\n{sampling}\n```",
        ]
        if (folder / "pipeline.py").is_file():
            parts += [
                "Without it, by the code in this repository. Read `pipeline.py` and `scheduler/` before you trust it:",
                "```python\nfrom diffusers import DiffusionPipeline",
                f"pipe = DiffusionPipeline.from_pretrained(\n    {source}, "
                f'custom_pipeline="pipeline", trust_remote_code=True\n)\n{sampling}\n```',
            ]
        parts += ["## Scheduler", f"`{type(scheduler).__name__}`:", _json_block(settings)]
        if scheduler.num_inference_steps is not None:
            parts.append(f"Timesteps of {steps} steps: {', '.join(str(t) for t in scheduler.timesteps.tolist())}.")
        if training_settings is not None:
            parts += ["## Training", _json_block(training_settings)]
        return "\n\n".join(parts) + "\n"


def _weight_files(variant: str | None) -> list[str]:
    """Patterns of the UNet's weight files in every format, whole and in shards, of one variant."""
    stem, part = "unet/diffusion_pytorch_model", "" if variant is None else f".{variant}"
    formats = ("safetensors", "bin")
    return [
        *(f"{stem}{part}.{suffix}" for suffix in formats),
        *(f"{stem}{part}-?????-of-?????.{suffix}" for suffix in formats),
        *(f"{stem}.{suffix}.index{part}.json" for suffix in formats),
    ]


def _json_block(settings: dict[str, Any]) -> str:
    return f"```json\n{json.dumps(settings, indent=2, default=str)}\n```"
