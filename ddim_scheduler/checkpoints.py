# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Published weights as a diffusers pipeline: of the official DDIM and DDPM PyTorch code (ermongroup/ddim,
pesser/pytorch_diffusion), and of openai/guided-diffusion.

    python -m ddim_scheduler.checkpoints model-790000.ckpt outputs/cifar10 --config cifar10
    python -m ddim_scheduler.checkpoints 64x64_diffusion.pt outputs/imagenet64 --config imagenet64

It is not imported with the package: `from ddim_scheduler.checkpoints import load_official_checkpoint`.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from . import EtaDDIMPipeline, EtaDDIMScheduler, guided_diffusion
from .command_line import Parser
from .validation import check_bool, check_integer, check_number

REQUIRED = ("ch", "out_ch", "ch_mult", "num_res_blocks", "attn_resolutions", "in_channels", "resolution")
OPTIONAL = {
    "dropout": 0.0,
    "resamp_with_conv": True,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "num_diffusion_timesteps": 1000,
}
_PUBLISHED = {"ch": 128, "out_ch": 3, "num_res_blocks": 2, "attn_resolutions": [16], "in_channels": 3}
_LSUN = {**_PUBLISHED, "ch_mult": [1, 1, 2, 2, 4, 4], "resolution": 256, "dropout": 0.0}
OFFICIAL_CONFIGS = {
    "cifar10": {**_PUBLISHED, "ch_mult": [1, 2, 2, 2], "resolution": 32, "dropout": 0.1},
    "celeba": {**_PUBLISHED, "ch_mult": [1, 2, 2, 2, 4], "resolution": 64, "dropout": 0.1},
    "bedroom": _LSUN,
    "church": _LSUN,
    "cat": _LSUN,
}
NORM_NUM_GROUPS = 32
# What UNet2DModel calls a part of the network, and what the official code calls it; replaced in this order.
NAMES = (
    ("time_embedding.linear_1", "temb.dense.0"),
    ("time_embedding.linear_2", "temb.dense.1"),
    ("conv_norm_out", "norm_out"),
    ("mid_block.resnets.0", "mid.block_1"),
    ("mid_block.attentions.0", "mid.attn_1"),
    ("mid_block.resnets.1", "mid.block_2"),
    ("down_blocks", "down"),
    ("up_blocks", "up"),
    ("downsamplers.0", "downsample"),
    ("upsamplers.0", "upsample"),
    ("resnets", "block"),
    ("time_emb_proj", "temb_proj"),
    ("conv_shortcut", "nin_shortcut"),
    ("attentions", "attn"),
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def load_official_checkpoint(
    path: str | os.PathLike, config: str | dict[str, Any], ema: bool = True
) -> EtaDDIMPipeline:
    """
    Loads a checkpoint of the official code into a pipeline; its `unet` is the `UNet2DModel`, float32, in eval mode.

    The scheduler has the official linear betas, predicts epsilon and does not clip x_0, as the official DDIM sampler.

    Args:
        path (`str` or `os.PathLike`):
            A file that `torch.save` wrote: a state dict, or the list `[model, optimizer, epoch, step, ema]` of the
            training code. Only tensors and plain containers are read, so that no code in the file can run.
        config (`str` or `dict`):
            `"cifar10"`, `"celeba"` (64x64), `"bedroom"`, `"church"` or `"cat"` (256x256, the same network), or the
            official settings: `ch` (a multiple of 32), `out_ch`, `ch_mult` (the first is 1), `num_res_blocks`,
            `attn_resolutions`, `in_channels` (equal to `out_ch`), `resolution` (or `image_size`); and, if they differ
            from these, `dropout` 0.0, `resamp_with_conv` True (no other), `beta_start` 0.0001, `beta_end` 0.02 and
            `num_diffusion_timesteps` 1000.
        ema (`bool`, defaults to `True`):
            Take the averaged weights of a list, else those of its model. A state dict holds one set, which is taken.

    Raises:
        ValueError, TypeError: If `config` is not valid, if `path` is no such file, or if its weights are not those of
            `config`; then missing, extra and wrongly shaped ones are listed under their official names.
    """
    check_bool("ema", ema)
    settings = _check_config(config)
    scheduler = EtaDDIMScheduler(
        num_train_timesteps=settings["num_diffusion_timesteps"],
        beta_start=settings["beta_start"],
        beta_end=settings["beta_end"],
        clip_sample=False,
    )
    num_levels = len(settings["ch_mult"])
    unet = _convert(
        _read_weights(path, ema),
        _unet_arguments(settings),
        lambda key: official_key(key, num_levels),
        2,
        f"`path` {str(path)!r} does not fit `config` {config!r}",
    )
    return EtaDDIMPipeline(unet=unet, scheduler=scheduler)


def load_guided_diffusion_checkpoint(path: str | os.PathLike, config: str | dict[str, Any]) -> EtaDDIMPipeline:
    """
    Loads a checkpoint of openai/guided-diffusion into a pipeline; its `unet` is a `UNet2DModel`, float32, in eval mode.

    The scheduler has the betas of the model, predicts epsilon, and clips x_0 as that code does. A learned variance is
    read from the network's second half. The classifiers of that code are other networks, and are not read.

    Args:
        path (`str` or `os.PathLike`):
            A file that `torch.save` wrote: a state dict. Only tensors and plain containers are read.
        config (`str` or `dict`):
            `"imagenet64"`, `"imagenet256"`, `"imagenet256-uncond"` or `"lsun256"` (bedroom, cat, horse), or that code's
            flags by their names: `image_size`, `num_channels`, `num_res_blocks`, `attention_resolutions` (heights, as
            `[32, 16, 8]`) and those that differ from `guided_diffusion.DEFAULTS`.

    Raises:
        ValueError, TypeError: As of `load_official_checkpoint`; and if UNet2DModel cannot compute the network, as that
            of 128x128, whose heads differ, and that of 512x512, whose first level is narrower than its time embedding.
            The message names the layer.
    """
    if isinstance(config, str) and config not in guided_diffusion.CONFIGS:
        raise ValueError(f"`config` must be one of {(*guided_diffusion.CONFIGS,)} or a dictionary, but is {config!r}.")
    named = guided_diffusion.CONFIGS[config] if isinstance(config, str) else config
    if not isinstance(named, dict):
        raise TypeError(f"`config` must be a name or a dictionary of guided-diffusion's flags, but is {config!r}.")
    settings = guided_diffusion.check_settings(named)
    scheduler = EtaDDIMScheduler(**guided_diffusion.scheduler_arguments(settings))
    unet = _convert(
        guided_diffusion.split_attention(_read_weights(path, ema=True), settings),
        guided_diffusion.unet_arguments(settings),
        lambda key: guided_diffusion.guided_key(key, settings),
        1,
        f"`path` {str(path)!r} does not fit `config` {config!r}",
    )
    return EtaDDIMPipeline(unet=unet, scheduler=scheduler)


def official_key(key: str, num_levels: int) -> str:
    """The official code's name for the weight that is `key` in the state dict of a UNet2DModel of so many levels."""
    for name, official_name in NAMES:
        key = key.replace(name, official_name)
    if key.startswith("up."):  # up.0 is the finest level there, up_blocks.0 the coarsest here
        up, level, rest = key.split(".", 2)
        key = f"{up}.{num_levels - 1 - int(level)}.{rest}"
    return key


def _check_config(config: str | dict[str, Any]) -> dict[str, Any]:
    """The official settings, complete and valid."""
    if isinstance(config, str):
        if config not in OFFICIAL_CONFIGS:
            raise ValueError(f"`config` must be one of {(*OFFICIAL_CONFIGS,)} or a dictionary, but is {config!r}.")
        config = OFFICIAL_CONFIGS[config]
    if not isinstance(config, dict):
        raise TypeError(f"`config` must be a name or a dictionary of official settings, but is {config!r}.")
    config = dict(config)
    if "image_size" in config and "resolution" not in config:
        config["resolution"] = config.pop("image_size")
    missing = [name for name in REQUIRED if name not in config]
    unknown = [name for name in config if name not in (*REQUIRED, *OPTIONAL)]
    if missing or unknown:
        raise ValueError(
            f"`config` must hold {REQUIRED} and may hold {(*OPTIONAL,)}; missing: {missing}, not known: {unknown}."
        )

    settings = {**OPTIONAL, **config}
    for name in ("ch", "out_ch", "num_res_blocks", "in_channels", "resolution", "num_diffusion_timesteps"):
        check_integer(name, settings[name], 1)
    for name in ("ch_mult", "attn_resolutions"):
        if not isinstance(settings[name], list | tuple):
            raise TypeError(f"`{name}` must be a list of integers, but is {settings[name]!r}.")
        for value in settings[name]:
            check_integer(name, value, 1)
    check_number("dropout", settings["dropout"], 0.0, 1.0)
    check_bool("resamp_with_conv", settings["resamp_with_conv"])

    # what the official network or UNet2DModel cannot do
    coarsest = 2 ** (len(settings["ch_mult"]) - 1)
    for name, fits, rule in (
        ("ch", settings["ch"] % NORM_NUM_GROUPS == 0, f"a multiple of {NORM_NUM_GROUPS}"),
        ("ch_mult", settings["ch_mult"][:1] in ([1], (1,)), "a list that begins with 1"),
        ("resolution", settings["resolution"] % coarsest == 0, f"a multiple of {coarsest}"),
        ("out_ch", settings["out_ch"] == settings["in_channels"], f"`in_channels` = {settings['in_channels']}"),
        ("resamp_with_conv", settings["resamp_with_conv"], "True"),
    ):
        if not fits:
            raise ValueError(f"`{name}` must be {rule}, but is {settings[name]!r}.")
    return settings


def _unet_arguments(settings: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the UNet2DModel that computes what the official network with these settings does."""
    resolutions = [settings["resolution"] // 2**level for level in range(len(settings["ch_mult"]))]
    attention = ["Attn" if resolution in settings["attn_resolutions"] else "" for resolution in resolutions]
    return {
        "sample_size": settings["resolution"],
        "in_channels": settings["in_channels"],
        "out_channels": settings["out_ch"],
        "down_block_types": [f"{attn}DownBlock2D" for attn in attention],
        "up_block_types": [f"{attn}UpBlock2D" for attn in reversed(attention)],
        "block_out_channels": [settings["ch"] * mult for mult in settings["ch_mult"]],
        "layers_per_block": settings["num_res_blocks"],
        "dropout": settings["dropout"],
        "norm_num_groups": NORM_NUM_GROUPS,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "attention_head_dim": None,  # one head
    }


def _read_weights(path: str | os.PathLike, ema: bool) -> dict[str, torch.Tensor]:
    """The state dict in a file, under the names of the network itself."""
    if not Path(path).is_file():
        raise ValueError(f"`path` must be an existing file, but is {str(path)!r}.")
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes torch raise anything
        # without torch's own message, which recommends to load the file unsafely
        raise ValueError(
            f"`path` {str(path)!r} cannot be loaded ({type(error).__name__}): it is damaged, or no PyTorch checkpoint, "
            "or holds more than tensors and plain containers, which could run code."
        ) from None

    if isinstance(states, dict):
        _refuse_lucidrains(states, path)
    weights = states
    if isinstance(states, list | tuple):
        if len(states) not in (4, 5):
            raise ValueError(
                f"`path` {str(path)!r} must hold a state dict or the list [model, optimizer, epoch, step, ema], but "
                f"holds a list of {len(states)}."
            )
        if ema and len(states) == 4:
            raise ValueError(f"`ema` is True, but `path` {str(path)!r} holds no averaged weights; use ema=False.")
        weights = states[4] if ema else states[0]
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) and weight.is_floating_point()
        for name, weight in weights.items()
    ):
        raise ValueError(f"`path` {str(path)!r} holds no state dict, from names to floating point tensors.")
    if all(name.startswith("module.") for name in weights):  # written from within DataParallel
        weights = {name.removeprefix("module."): weight for name, weight in weights.items()}
    return weights


def _refuse_lucidrains(states: dict[str, Any], path: str | os.PathLike):
    """Says why a checkpoint of denoising_diffusion_pytorch is none for a UNet2DModel."""
    parts = [states, *(part for part in states.values() if isinstance(part, dict))]
    for name, weight in [item for part in parts for item in part.items()]:
        if isinstance(name, str) and name.endswith("init_conv.weight"):
            raise ValueError(
                f"`path` {str(path)!r} holds a network of denoising_diffusion_pytorch, which a UNet2DModel cannot "
                f"compute: its first layer, {name!r}, is a convolution of {(*weight.shape[2:],)} pixels, not of (3, 3)."
            )


def _convert(
    weights: dict[str, torch.Tensor],
    arguments: dict[str, Any],
    name_of: Callable[[str], str],
    convolution_dims: int,
    misfit: str,
) -> UNet2DModel:
    """
    The UNet2DModel of some arguments with weights of another network.

    Args:
        weights: By their own names.
        arguments: Of the UNet2DModel.
        name_of: From the name of a weight of the UNet2DModel to the other one.
        convolution_dims: Of the convolutions of one pixel that are in attention there what matrices are here.
        misfit: Begins the message of an error.
    """
    with torch.device("meta"):  # no memory and no random numbers are spent on weights that will be replaced
        unet = UNet2DModel(**arguments)
    converted, missing, wrong, extra = {}, [], [], dict(weights)
    for key, target in unet.state_dict().items():
        name = name_of(key)
        is_projection = ".attentions." in key and target.ndim == 2
        shape = (*target.shape, *(1,) * convolution_dims) if is_projection else (*target.shape,)
        weight = extra.pop(name, None)
        if weight is None:
            missing.append(name)
        elif weight.shape != shape:
            wrong.append(f"{name} {(*weight.shape,)} instead of {shape}")
        else:
            converted[key] = weight.reshape(target.shape)
    kinds = {"missing": missing, "extra": [*extra], "of wrong shape": wrong}
    if any(kinds.values()):
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items() if names)
        lists = "".join(f"\n{kind}: {', '.join(names)}" for kind, names in kinds.items() if names)
        raise ValueError(f"{misfit}: {counts}.{lists}")
    unet.to_empty(device="cpu").load_state_dict(converted)
    return unet.eval()


def main(argv: list[str] | None = None) -> Path:
    """Converts a checkpoint and returns the folder of the pipeline."""
    parser = Parser(
        prog="python -m ddim_scheduler.checkpoints",
        description="Convert a checkpoint of the official DDIM or DDPM PyTorch code, or of guided-diffusion, to a "
        "folder with a pipeline.",
    )
    parser.add_argument("checkpoint", help="file with a state dict, or with the list that the training code writes")
    parser.add_argument("output_dir", type=Path, help="folder to write, new or empty")
    names = (*OFFICIAL_CONFIGS, *guided_diffusion.CONFIGS)
    parser.add_argument("--config", required=True, help=f"{', '.join(names)}, or a JSON file of settings")
    parser.add_argument("--no_ema", action="store_true", help="take the weights of the model, not the averaged ones")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        parser.error(f"output_dir must be a new or an empty folder, but is {args.output_dir}")
    config = args.config
    if config not in names:
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--config must be one of {names} or a JSON file, but is {config}: {error}")
    if not isinstance(config, str | dict):
        parser.error(f"`config` must be a dictionary of settings, but {args.config} holds {config!r:.80}")
    is_guided = config in guided_diffusion.CONFIGS if isinstance(config, str) else "num_channels" in config
    try:
        if is_guided:
            pipeline = load_guided_diffusion_checkpoint(args.checkpoint, config)
        else:
            pipeline = load_official_checkpoint(args.checkpoint, config, ema=not args.no_ema)
        pipeline.save_pretrained(args.output_dir)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    print(f"The pipeline is {args.output_dir.resolve()}")
    return args.output_dir


if __name__ == "__main__":
    main()
