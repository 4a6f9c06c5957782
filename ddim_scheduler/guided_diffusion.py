# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
The networks of openai/guided-diffusion (https://arxiv.org/abs/2105.05233) as a UNet2DModel: settings, arguments, names.

Settings have the names of that code's flags.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .validation import check_bool, check_choice, check_integer, check_number

NUM_CLASSES = 1000  # of the class-conditional models: ImageNet's
DEFAULTS: dict[str, Any] = {  # those of the code that differ nowhere in what is published are not settings
    "channel_mult": None,
    "num_heads": 4,
    "num_head_channels": -1,
    "class_cond": False,
    "learn_sigma": False,
    "resblock_updown": False,
    "use_scale_shift_norm": True,
    "use_new_attention_order": False,
    "dropout": 0.0,
    "noise_schedule": "linear",
    "diffusion_steps": 1000,
}
REQUIRED = ("image_size", "num_channels", "num_res_blocks", "attention_resolutions")
CHANNEL_MULTS = {256: [1, 1, 2, 2, 4, 4], 128: [1, 1, 2, 3, 4], 64: [1, 2, 3, 4]}  # by image size, if none is given
_PUBLISHED = {"attention_resolutions": [32, 16, 8], "num_head_channels": 64, "num_res_blocks": 2}
_PUBLISHED |= {"learn_sigma": True, "resblock_updown": True}
_256 = {**_PUBLISHED, "image_size": 256, "num_channels": 256}
CONFIGS = {
    "imagenet64": {
        **_PUBLISHED,
        **{"image_size": 64, "num_channels": 192, "num_res_blocks": 3, "class_cond": True, "dropout": 0.1},
        **{"noise_schedule": "cosine", "use_new_attention_order": True},
    },
    "imagenet256": {**_256, "class_cond": True},
    "imagenet256-uncond": _256,
    "lsun256": {**_256, "dropout": 0.1},
}
# What UNet2DModel calls a part of a block, and what guided-diffusion calls it.
NAMES = (
    ("conv_in", "input_blocks.0.0"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("class_embedding", "label_emb"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.resnets.0", "middle_block.0"),
    ("mid_block.attentions.0", "middle_block.1"),
    ("mid_block.resnets.1", "middle_block.2"),
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
    ("group_norm", "norm"),
    ("to_q", "qkv.q"),
    ("to_k", "qkv.k"),
    ("to_v", "qkv.v"),
    ("to_out.0", "proj_out"),
)


def check_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Settings, complete and valid.

    Raises:
        ValueError, TypeError: If they are not, or UNet2DModel cannot compute the network; the layer is named.
    """
    missing = [name for name in REQUIRED if name not in config]
    unknown = [name for name in config if name not in (*REQUIRED, *DEFAULTS)]
    if missing or unknown:
        raise ValueError(
            f"`config` must hold {REQUIRED} and may hold {(*DEFAULTS,)}; missing: {missing}, not known: {unknown}."
        )
    settings = {**DEFAULTS, **config}
    if settings["channel_mult"] is None:
        check_choice("image_size", settings["image_size"], (*CHANNEL_MULTS,))
        settings["channel_mult"] = CHANNEL_MULTS[settings["image_size"]]
    for name in ("image_size", "num_channels", "num_res_blocks", "num_heads", "diffusion_steps"):
        check_integer(name, settings[name], 1)
    for name in ("attention_resolutions", "channel_mult"):
        if not isinstance(settings[name], list | tuple):
            raise TypeError(f"`{name}` must be a list, but is {settings[name]!r}.")
    for name, default in DEFAULTS.items():
        if isinstance(default, bool):
            check_bool(name, settings[name])
    check_integer("num_head_channels", settings["num_head_channels"], -1)
    check_number("dropout", settings["dropout"], 0.0, 1.0)
    check_choice("noise_schedule", settings["noise_schedule"], ("linear", "cosine"))
    if settings["channel_mult"][:1] not in ([1], (1,)):
        raise ValueError(
            f"`channel_mult` must begin with 1, but is {settings['channel_mult']}: the layer `time_embed.0` of a "
            "UNet2DModel takes as many numbers as its first level has channels."
        )
    _head_dim(settings)
    return settings


def unet_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the UNet2DModel that computes what the network with these settings does."""
    resnet = settings["resblock_updown"]
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnet else ("DownBlock2D", "UpBlock2D")
    attention = _attention(settings)
    return {
        "sample_size": settings["image_size"],
        "in_channels": 3,
        "out_channels": 6 if settings["learn_sigma"] else 3,
        "down_block_types": ["AttnDownBlock2D" if has_it else down for has_it in attention],
        "up_block_types": ["AttnUpBlock2D" if has_it else up for has_it in reversed(attention)],
        "block_out_channels": _widths(settings),
        "layers_per_block": settings["num_res_blocks"],
        "downsample_type": "resnet" if resnet else "conv",
        "upsample_type": "resnet" if resnet else "conv",
        "dropout": settings["dropout"],
        "attention_head_dim": _head_dim(settings),
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": "scale_shift" if settings["use_scale_shift_norm"] else "default",
        "num_class_embeds": NUM_CLASSES if settings["class_cond"] else None,
    }


def scheduler_arguments(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the scheduler. guided-diffusion clips x_0, and scales linear betas to the number of steps."""
    steps = settings["diffusion_steps"]
    arguments = {"num_train_timesteps": steps, "clip_sample": True}
    if settings["learn_sigma"]:
        arguments["variance_type"] = "learned_range"
    if settings["noise_schedule"] == "cosine":
        return {**arguments, "beta_schedule": "squaredcos_cap_v2"}
    return {**arguments, "beta_schedule": "linear", "beta_start": 0.1 / steps, "beta_end": 20 / steps}


def guided_key(key: str, settings: Mapping[str, Any]) -> str:
    """guided-diffusion's name for the weight that is `key` in the UNet2DModel, after `split_attention`."""
    if key.startswith(("down_blocks", "up_blocks")):
        side, level, kind, index, rest = key.split(".", 4)
        blocks = settings["num_res_blocks"] + 1  # of a level, on the way down with the one that halves it
        if side == "down_blocks":
            number = 1 + int(level) * blocks + int(index)
            if kind == "downsamplers":
                number = (int(level) + 1) * blocks
                rest = rest.replace("conv.", "op.") if rest.startswith("conv.") else rest
        else:
            number = int(level) * blocks + int(index)
            if kind == "upsamplers":
                number = (int(level) + 1) * blocks - 1
        place = 1 if kind == "attentions" else 0
        if kind == "upsamplers":
            place = 2 if _attention(settings)[::-1][int(level)] else 1
        key = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{number}.{place}.{rest}"
    for name, guided_name in NAMES:
        key = key.replace(name, guided_name)
    return key


def split_attention(weights: dict[str, torch.Tensor], settings: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The weights with each `qkv` as three, which it holds one after another, or within each head by its older code."""
    split = {}
    for name, weight in weights.items():
        if ".qkv." not in name or len(weight) % 3:
            split[name] = weight
            continue
        channels = len(weight) // 3
        head_dim = _head_dim(settings) or channels
        heads = 1 if settings["use_new_attention_order"] else max(1, channels // head_dim)
        parts = weight.reshape(heads, 3, channels // heads, *weight.shape[1:])
        for index, part in enumerate("qkv"):
            split[name.replace(".qkv.", f".qkv.{part}.")] = parts[:, index].reshape(channels, *weight.shape[1:])
    return split


def _widths(settings: Mapping[str, Any]) -> list[int]:
    return [settings["num_channels"] * mult for mult in settings["channel_mult"]]


def _attention(settings: Mapping[str, Any]) -> list[bool]:
    sizes = [settings["image_size"] // 2**level for level in range(len(settings["channel_mult"]))]
    return [size in settings["attention_resolutions"] for size in sizes]


def _head_dim(settings: Mapping[str, Any]) -> int | None:
    """Channels of a head, which a UNet2DModel has the same in all of its attention; None for one head."""
    if settings["num_head_channels"] != -1:
        return settings["num_head_channels"]
    if settings["num_heads"] == 1:
        return None
    widths = _widths(settings)
    dims = {
        width // settings["num_heads"]
        for width, has_it in zip(widths, _attention(settings), strict=True)
        if has_it or width == widths[-1]
    }
    if len(dims) > 1:
        raise ValueError(
            f"`num_heads` is {settings['num_heads']}: the heads of the layers `qkv` have {sorted(dims)} channels, but "
            "those of a UNet2DModel are alike. Networks with `num_head_channels`, or one head, can be converted."
        )
    return dims.pop()
