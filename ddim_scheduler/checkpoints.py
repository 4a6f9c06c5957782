# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Weights of the official DDIM and DDPM PyTorch code (ermongroup/ddim, pesser/pytorch_diffusion) as a diffusers pipeline.

    python -m ddim_scheduler.checkpoints model-790000.ckpt outputs/cifar10 --config cifar10

It is not imported with the package: `from ddim_scheduler.checkpoints import load_official_checkpoint`.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel

from . import EtaDDIMPipeline, EtaDDIMScheduler
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
    weights = _read_weights(path, ema)
    with torch.device("meta"):  # no memory and no random numbers are spent on weights that will be replaced
        unet = UNet2DModel(**_unet_arguments(settings))
    converted = _convert(weights, unet, f"`path` {str(path)!r} does not fit `config` {config!r}")
    unet.to_empty(device="cpu").load_state_dict(converted)
    return EtaDDIMPipeline(unet=unet.eval(), scheduler=scheduler)


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


def _convert(weights: dict[str, torch.Tensor], unet: UNet2DModel, misfit: str) -> dict[str, torch.Tensor]:
    """The official weights under the names and with the shapes of `unet`; `misfit` begins the message of an error."""
    num_levels = len(unet.config.block_out_channels)
    converted, missing, wrong, extra = {}, [], [], dict(weights)
    for key, target in unet.state_dict().items():
        name = official_key(key, num_levels)
        # the official attention projects by 1x1 convolutions, UNet2DModel's by matrices
        shape = (*target.shape, 1, 1) if ".attn" in name and target.ndim == 2 else (*target.shape,)
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
    return converted


def main(argv: list[str] | None = None) -> Path:
    """Converts a checkpoint and returns the folder of the pipeline."""
    parser = argparse.ArgumentParser(
        prog="python -m ddim_scheduler.checkpoints",
        description="Convert a checkpoint of the official DDIM or DDPM PyTorch code to a folder with a pipeline.",
    )
    parser.add_argument("checkpoint", help="file with a state dict, or with the list that the training code writes")
    parser.add_argument("output_dir", type=Path, help="folder to write, new or empty")
    parser.add_argument("--config", required=True, help=f"{', '.join(OFFICIAL_CONFIGS)}, or a JSON file of settings")
    parser.add_argument("--no_ema", action="store_true", help="take the weights of the model, not the averaged ones")
    args = parser.parse_args(argv)
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        parser.error(f"output_dir must be a new or an empty folder, but is {args.output_dir}")
    config = args.config
    if config not in OFFICIAL_CONFIGS:
        try:
            config = json.loads(Path(config).read_text())
        except (OSError, ValueError) as error:
            parser.error(f"--config must be one of {(*OFFICIAL_CONFIGS,)} or a JSON file, but is {config}: {error}")
    try:
        load_official_checkpoint(args.checkpoint, config, ema=not args.no_ema).save_pretrained(args.output_dir)
    except (ValueError, TypeError, OSError) as error:
        parser.error(str(error))
    print(f"The pipeline is {args.output_dir.resolve()}")
    return args.output_dir


if __name__ == "__main__":
    main()
