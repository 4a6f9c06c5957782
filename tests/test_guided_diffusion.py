"""Checkpoints of guided-diffusion: the converted UNet computes what that network does; what it cannot be is refused."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import nn

from ddim_scheduler import EtaDDIMPipeline, guided_diffusion
from ddim_scheduler.checkpoints import load_guided_diffusion_checkpoint, load_official_checkpoint, main

SMALL = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": [1, 2],
    "attention_resolutions": [8],
    "num_head_channels": 16,
}
NARROW = {"num_channels": 32, "num_head_channels": 32, "channel_mult": None}


# ------------------------------------------------------------------------------- the network, written from its layout


class ResBlock(nn.Module):
    def __init__(self, channels, out, temb, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.ModuleList([nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1)])
        self.emb_layers = nn.ModuleList([nn.SiLU(), nn.Linear(temb, 2 * out if scale_shift else out)])
        self.out_layers = nn.ModuleList([nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(), nn.Conv2d(out, out, 3, 1, 1)])
        self.skip_connection = nn.Conv2d(channels, out, 1) if channels != out else nn.Identity()

    def resampled(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x, emb):
        h = self.in_layers[2](self.resampled(F.silu(self.in_layers[0](x))))
        x, emb = self.resampled(x), self.emb_layers[1](F.silu(emb))[:, :, None, None]
        norm, _, _, conv = self.out_layers
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + emb)
        return self.skip_connection(x) + conv(F.silu(h))


class Attention(nn.Module):
    def __init__(self, channels, heads, new_order):
        super().__init__()
        self.heads, self.new_order = heads, new_order
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, emb):
        batch, channels = x.shape[:2]
        qkv = self.qkv(self.norm(x.flatten(2)))
        if self.new_order:
            q, k, v = (part.reshape(batch * self.heads, -1, qkv.shape[2]) for part in qkv.chunk(3, dim=1))
        else:
            q, k, v = qkv.reshape(batch * self.heads, -1, qkv.shape[2]).chunk(3, dim=1)
        weights = torch.softmax(torch.einsum("bct,bcs->bts", q, k) / math.sqrt(q.shape[1]), dim=-1)
        h = torch.einsum("bts,bcs->bct", weights, v).reshape(batch, channels, -1)
        return x + self.proj_out(h).view_as(x)


class Resample(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        setattr(self, "op" if down else "conv", nn.Conv2d(channels, channels, 3, 2 if down else 1, 1))

    def forward(self, x, emb):
        return self.op(x) if self.down else self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class First(nn.Conv2d):
    def forward(self, x, emb):
        return super().forward(x)


class Guided(nn.Module):
    def __init__(self, config):
        super().__init__()
        s = guided_diffusion.check_settings(config)
        self.width, temb = s["num_channels"], 4 * s["num_channels"]
        self.time_embed = nn.ModuleList([nn.Linear(self.width, temb), nn.SiLU(), nn.Linear(temb, temb)])
        if s["class_cond"]:
            self.label_emb = nn.Embedding(1000, temb)

        def block(channels, out, resample=None):
            return ResBlock(channels, out, temb, s["use_scale_shift_norm"], resample)

        def attention(channels):
            heads = channels // s["num_head_channels"] if s["num_head_channels"] != -1 else s["num_heads"]
            return Attention(channels, heads, s["use_new_attention_order"])

        def resample(channels, kind):
            return block(channels, channels, kind) if s["resblock_updown"] else Resample(channels, kind == "down")

        sizes = [s["image_size"] // 2**level for level in range(len(s["channel_mult"]))]
        channels, skips = self.width, [self.width]
        self.input_blocks = nn.ModuleList([nn.ModuleList([First(3, channels, 3, padding=1)])])
        for level, mult in enumerate(s["channel_mult"]):
            for _ in range(s["num_res_blocks"]):
                layers = [block(channels, mult * self.width)]
                channels = mult * self.width
                layers += [attention(channels)] * (sizes[level] in s["attention_resolutions"])
                self.input_blocks.append(nn.ModuleList(layers))
                skips.append(channels)
            if level != len(sizes) - 1:
                self.input_blocks.append(nn.ModuleList([resample(channels, "down")]))
                skips.append(channels)
        self.middle_block = nn.ModuleList([block(channels, channels), attention(channels), block(channels, channels)])
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed([*enumerate(s["channel_mult"])]):
            for index in range(s["num_res_blocks"] + 1):
                layers = [block(channels + skips.pop(), mult * self.width)]
                channels = mult * self.width
                layers += [attention(channels)] * (sizes[level] in s["attention_resolutions"])
                if level and index == s["num_res_blocks"]:
                    layers.append(resample(channels, "up"))
                self.output_blocks.append(nn.ModuleList(layers))
        out = nn.Conv2d(channels, 6 if s["learn_sigma"] else 3, 3, padding=1)
        self.out = nn.ModuleList([nn.GroupNorm(32, channels), nn.SiLU(), out])

    def forward(self, x, t, y=None):
        half = self.width // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10000) / half * torch.arange(half))[None]
        emb = torch.cat([angles.cos(), angles.sin()], dim=1)
        emb = self.time_embed[2](F.silu(self.time_embed[0](emb)))
        emb = emb if y is None else emb + self.label_emb(y)
        skips = []
        for layers in self.input_blocks:
            for layer in layers:
                x = layer(x, emb)
            skips.append(x)
        for layer in self.middle_block:
            x = layer(x, emb)
        for layers in self.output_blocks:
            x = torch.cat([x, skips.pop()], dim=1)
            for layer in layers:
                x = layer(x, emb)
        return self.out[2](F.silu(self.out[0](x)))


def make_guided(config, seed=0):
    """A network with torch's initial weights, and norms that are not all alike."""
    torch.manual_seed(seed)
    model = Guided(config).eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


# ------------------------------------------------------------------------------------------------- the same computation


@pytest.mark.parametrize(
    ("changes", "size"),
    [
        ({}, 16),
        ({"resblock_updown": True, "learn_sigma": True, "class_cond": True, "use_new_attention_order": True}, 16),
        ({"use_scale_shift_norm": False, "num_head_channels": -1, "num_heads": 4, "num_res_blocks": 2}, 16),
        ({"num_head_channels": -1, "num_heads": 1, "attention_resolutions": [16, 4], "channel_mult": [1, 2, 3]}, 16),
        ({"resblock_updown": True, "attention_resolutions": [16, 8], "num_res_blocks": 2}, 16),
        # the published layouts, narrower
        ({**guided_diffusion.CONFIGS["imagenet64"], **NARROW}, 16),
        ({**guided_diffusion.CONFIGS["lsun256"], **NARROW}, 32),
    ],
)
@torch.no_grad()
def test_output_equals_that_of_guided_diffusion(changes, size, tmp_path, record_property):
    config = {**SMALL, **changes}
    guided = make_guided(config)
    torch.save(guided.state_dict(), tmp_path / "model.pt")
    unet = load_guided_diffusion_checkpoint(tmp_path / "model.pt", config).unet
    x, t = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 999])
    labels = torch.tensor([3, 999]) if config.get("class_cond") else None
    expected = guided(x, t, labels)
    assert expected.std() > 0.1
    difference = (unet(x, t, labels).sample - expected).abs().max().item()
    record_property("largest difference of the output", difference)
    assert difference < 2e-5


def test_published_networks_have_their_number_of_parameters():
    """In millions, as the paper has it: 296 for 64x64, 554 for 256x256."""
    for name, millions in (("imagenet64", 296), ("imagenet256", 554)):
        settings = guided_diffusion.check_settings(guided_diffusion.CONFIGS[name])
        with torch.device("meta"):
            unet = UNet2DModel(**guided_diffusion.unet_arguments(settings))
        assert round(unet.num_parameters() / 1e6) == millions


def test_command_makes_a_pipeline_that_samples(tmp_path):
    config = {**SMALL, "learn_sigma": True, "noise_schedule": "cosine"}
    torch.save(make_guided(config).state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    main([str(tmp_path / "model.pt"), str(tmp_path / "model"), "--config", str(tmp_path / "config.json")])
    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.variance_type == "learned_range"
    assert pipeline.scheduler.config.clip_sample
    assert pipeline.scheduler.alphas_cumprod[-1] < 1e-4
    assert pipeline(batch_size=2, num_inference_steps=2, seed=0, output_type="pt").images.shape == (2, 3, 16, 16)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("config", "message"),
    [
        # 128x128 and 512x512, as published
        (
            {"image_size": 128, "num_channels": 256, "num_res_blocks": 2, "attention_resolutions": [32, 16, 8]},
            r"`num_heads` is 4: the heads of the layers `qkv` have \[128, 192, 256\] channels",
        ),
        ({**SMALL, "channel_mult": [0.5, 1]}, r"`channel_mult` must begin with 1, .*`time_embed\.0`"),
        ({**SMALL, "image_size": 48, "channel_mult": None}, "`image_size` must be one of .* but is 48"),
        ({**SMALL, "noise_schedule": "sqrt"}, "`noise_schedule` must be one of .* but is 'sqrt'"),
        ({**SMALL, "classes": 10}, r"not known: \['classes'\]"),
        ({"image_size": 64}, r"missing: \['num_channels'"),
        ("imagenet512", "`config` must be one of .* but is 'imagenet512'"),
    ],
)
def test_networks_that_cannot_be_expressed_are_refused(tmp_path, config, message):
    """By the layer, before the file is read."""
    with pytest.raises(ValueError, match=message):
        load_guided_diffusion_checkpoint(tmp_path / "nothing.pt", config)


def test_weights_of_other_settings_are_listed(tmp_path):
    torch.save(make_guided(SMALL).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"does not fit `config`.*missing.*\n.*label_emb\.weight"):
        load_guided_diffusion_checkpoint(tmp_path / "model.pt", {**SMALL, "class_cond": True})
    with pytest.raises(ValueError, match=r"of wrong shape: .*input_blocks"):
        load_guided_diffusion_checkpoint(tmp_path / "model.pt", {**SMALL, "num_channels": 64})


@pytest.mark.parametrize("load", [lambda p: load_official_checkpoint(p, "cifar10"), lambda p: load_guided(p)])
@pytest.mark.parametrize("prefix", ["", "model.", "ema_model.model."])
def test_lucidrains_network_is_refused_by_its_first_layer(tmp_path, load, prefix):
    """Whose names are `init_conv`, `downs`, `ups`, alone or in the file that its trainer writes."""
    weights = {
        f"{prefix}init_conv.weight": torch.zeros(64, 3, 7, 7),
        f"{prefix}init_conv.bias": torch.zeros(64),
        f"{prefix}downs.0.0.block1.proj.weight": torch.zeros(64, 64, 3, 3),
        f"{prefix}downs.0.2.norm.g": torch.zeros(1, 64, 1, 1),
    }
    states = {"step": 3, "model": weights, "opt": {"state": {}}, "ema": weights} if prefix else weights
    torch.save(states, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match=rf"first layer, '{prefix}init_conv\.weight', is a convolution of \(7, 7\)"):
        load(tmp_path / "model-1.pt")


def load_guided(path):
    return load_guided_diffusion_checkpoint(path, "imagenet64")
