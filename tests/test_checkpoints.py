"""Official checkpoints: the converted UNet computes what the official network does; other files are refused."""

import json
import math
import os
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, UNet2DModel
from torch import nn

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.checkpoints import OFFICIAL_CONFIGS, load_official_checkpoint, main

import exact

# two levels, attention at the lower one
SMALL = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 16,
}


# ----------------------------------------------------------------------- the official network, written from its layout


def group_norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


def swish(x):
    return x * torch.sigmoid(x)


def conv3x3(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


class ResnetBlock(nn.Module):
    def __init__(self, in_channels, out_channels, temb_channels):
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = conv3x3(in_channels, out_channels)
        self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = group_norm(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels)
        self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x, temb):
        h = self.conv1(swish(self.norm1(x))) + self.temb_proj(swish(temb))[:, :, None, None]
        return self.nin_shortcut(x) + self.conv2(swish(self.norm2(h)))


class AttnBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(x.shape[1]), dim=2)
        return x + self.proj_out(torch.einsum("bij,bcj->bci", weights, v).view_as(x))


class Downsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = conv3x3(channels, channels)

    def forward(self, x):
        return self.conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))


class OfficialModel(nn.Module):
    """The official network. `forward` takes any image size; attention stays at the levels that `resolution` gives."""

    def __init__(self, ch, out_ch, ch_mult, num_res_blocks, attn_resolutions, in_channels, resolution, dropout=0.0):
        super().__init__()
        self.ch = ch
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, 4 * ch), nn.Linear(4 * ch, 4 * ch)])
        self.conv_in = conv3x3(in_channels, ch)

        last = len(ch_mult) - 1
        channels, skip_channels = ch, [ch]
        self.down = nn.ModuleList()
        for level, mult in enumerate(ch_mult):
            down = nn.Module()
            down.block, down.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks):
                down.block.append(ResnetBlock(channels, ch * mult, 4 * ch))
                channels = ch * mult
                if resolution >> level in attn_resolutions:
                    down.attn.append(AttnBlock(channels))
                skip_channels.append(channels)
            if level != last:
                down.downsample = Downsample(channels)
                skip_channels.append(channels)
            self.down.append(down)

        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(channels, channels, 4 * ch)
        self.mid.attn_1 = AttnBlock(channels)
        self.mid.block_2 = ResnetBlock(channels, channels, 4 * ch)

        self.up = nn.ModuleList()
        for level in range(last, -1, -1):
            up = nn.Module()
            up.block, up.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                up.block.append(ResnetBlock(channels + skip_channels.pop(), ch * ch_mult[level], 4 * ch))
                channels = ch * ch_mult[level]
                if resolution >> level in attn_resolutions:
                    up.attn.append(AttnBlock(channels))
            if level != 0:
                up.upsample = Upsample(channels)
            self.up.insert(0, up)

        self.norm_out = group_norm(channels)
        self.conv_out = conv3x3(channels, out_ch)

    def forward(self, x, t):
        half = self.ch // 2
        angles = t.float()[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))[None]
        temb = torch.cat([angles.sin(), angles.cos()], dim=1)
        temb = self.temb.dense[1](swish(self.temb.dense[0](temb)))

        skips = [self.conv_in(x)]
        for down in self.down:
            for index, block in enumerate(down.block):
                h = block(skips[-1], temb)
                skips.append(down.attn[index](h) if down.attn else h)
            if hasattr(down, "downsample"):
                skips.append(down.downsample(skips[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(skips[-1], temb)), temb)
        for up in reversed(self.up):
            for index, block in enumerate(up.block):
                h = block(torch.cat([h, skips.pop()], dim=1), temb)
                h = up.attn[index](h) if up.attn else h
            if hasattr(up, "upsample"):
                h = up.upsample(h)
        return self.conv_out(swish(self.norm_out(h)))


def make_official(settings, seed=0):
    """An official network with torch's initial weights, and norms that are not all alike."""
    torch.manual_seed(seed)
    model = OfficialModel(**settings).eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.normal_(module.weight, 1.0, 0.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    return model


def largest_difference(official, unet, size):
    generator = torch.Generator().manual_seed(1)
    differences = []
    with torch.no_grad():
        for t in (0, 500, 999):
            x = torch.randn(1, unet.config.in_channels, size, size, generator=generator)
            expected = official(x, torch.tensor([t]))
            differences.append((unet(x, t).sample - expected).abs().max().item())
            assert expected.std() > 0.1
    return max(differences)


@pytest.fixture(scope="module")
def official():
    return make_official(SMALL)


@pytest.fixture
def checkpoint(official, tmp_path):
    """A file with the state dict of a small official network."""
    path = tmp_path / "small.ckpt"
    torch.save(official.state_dict(), path)
    return path


# ------------------------------------------------------------------------------------------------- the same computation


@pytest.mark.parametrize(
    ("config", "size", "millions"),
    [
        ("cifar10", 32, 35.75),
        ("celeba", 64, 78.70),
        ("church", 64, 113.67),  # the 256x256 network on a smaller image, attention at the same level
        pytest.param("church", 256, 113.67, marks=pytest.mark.slow),
    ],
)
def test_epsilon_equals_the_official_network(config, size, millions, tmp_path, record_property):
    official = make_official(OFFICIAL_CONFIGS[config])
    torch.save(official.state_dict(), tmp_path / "model.ckpt")
    unet = load_official_checkpoint(tmp_path / "model.ckpt", config).unet
    (tmp_path / "model.ckpt").unlink()
    assert type(unet) is UNet2DModel
    assert round(unet.num_parameters() / 1e6, 2) == millions
    difference = largest_difference(official, unet, size)
    record_property("largest difference in epsilon each", difference)
    assert difference <= 5e-6


@pytest.mark.parametrize(
    "settings",
    [
        SMALL,
        {
            **SMALL,
            "in_channels": 1,
            "out_ch": 1,
            "ch_mult": (1, 3, 2),
            "num_res_blocks": 3,
            "attn_resolutions": (16, 4),
        },
        {**SMALL, "ch_mult": [1], "attn_resolutions": []},
        {**SMALL, "ch": 64, "ch_mult": [1, 1, 1], "num_res_blocks": 2, "attn_resolutions": [16, 8, 4]},
    ],
)
def test_epsilon_equals_the_official_network_of_other_settings(settings, tmp_path):
    official = make_official(settings)
    torch.save(official.state_dict(), tmp_path / "model.ckpt")
    unet = load_official_checkpoint(tmp_path / "model.ckpt", settings).unet
    assert largest_difference(official, unet, 16) <= 5e-6


def test_samples_equal_the_official_sampler(official, checkpoint):
    pipeline = load_official_checkpoint(checkpoint, {**SMALL, "beta_end": 0.01, "num_diffusion_timesteps": 500})
    pipeline.set_progress_bar_config(disable=True)
    x = latents = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    bars = exact.alphas_cumprod(500, 1e-4, 0.01)
    with torch.no_grad():
        for t in range(450, -1, -50):
            epsilon = official(x, torch.full((2,), t))
            x = exact.ddim_step(x, epsilon, bars[t].item(), bars[t - 50].item() if t else 1.0)
    images = pipeline(batch_size=2, num_inference_steps=10, latents=latents, output_type="latent").images
    assert x.abs().max() > 1.5  # a sampler that clips x_0 would differ
    assert (images - x).abs().max() < 1e-4


def test_pipeline_is_ready_to_sample(checkpoint):
    state = torch.get_rng_state()
    pipeline = load_official_checkpoint(str(checkpoint), {**SMALL, "dropout": 0.5})
    assert torch.equal(torch.get_rng_state(), state)
    assert type(pipeline) is EtaDDIMPipeline
    assert type(pipeline.scheduler) is EtaDDIMScheduler
    assert not pipeline.unet.training
    assert pipeline.unet.config.dropout == 0.5
    assert pipeline.unet.config.sample_size == 16
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert (pipeline.scheduler.alphas_cumprod - exact.alphas_cumprod()).abs().max() < 1e-6


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [True, False])
def test_list_of_the_training_code(official, tmp_path, prefix, zipped):
    averaged = make_official(SMALL, seed=1)
    model = {prefix + name: weight for name, weight in official.state_dict().items()}
    optimizer = torch.optim.Adam(official.parameters()).state_dict()
    states = [model, optimizer, 12, 3456, dict(averaged.named_parameters())]
    torch.save(states, tmp_path / "ckpt.pth", _use_new_zipfile_serialization=zipped)
    for ema, expected in ((True, averaged), (False, official)):
        unet = load_official_checkpoint(tmp_path / "ckpt.pth", SMALL, ema=ema).unet
        assert largest_difference(expected, unet, 16) <= 5e-6

    torch.save(states[:4], tmp_path / "ckpt.pth")
    unet = load_official_checkpoint(tmp_path / "ckpt.pth", SMALL, ema=False).unet
    assert largest_difference(official, unet, 16) <= 5e-6
    with pytest.raises(ValueError, match=r"`ema` is True.*ckpt\.pth"):
        load_official_checkpoint(tmp_path / "ckpt.pth", SMALL)


def test_state_dict_with_prefix_in_half_precision_and_image_size(official, tmp_path):
    halves = {f"module.{name}": weight.half() for name, weight in official.state_dict().items()}
    torch.save(halves, tmp_path / "model.pth")
    settings = {name: value for name, value in SMALL.items() if name != "resolution"}
    unet = load_official_checkpoint(tmp_path / "model.pth", {**settings, "image_size": 16}, ema=False).unet
    assert unet.dtype == torch.float32
    assert torch.equal(unet.conv_in.weight, official.conv_in.weight.half().float())


# ---------------------------------------------------------------------------------------------------------- wrong files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("mid.attn_1.q.weight"), r"1 missing\.\nmissing: mid\.attn_1\.q\.weight$"),
        (lambda w: w.update({"logvar": torch.zeros(1000)}), r"1 extra\.\nextra: logvar$"),
        (
            lambda w: w.update({"up.1.block.0.conv1.bias": torch.zeros(5)}),
            r"1 of wrong shape\.\nof wrong shape: up\.1\.block\.0\.conv1\.bias \(5,\) instead of \(64,\)$",
        ),
        (
            lambda w: w.update({"down.1.attn.0.k.weight": torch.zeros(64, 64)}),
            r"1 of wrong shape\.\nof wrong shape: down\.1\.attn\.0\.k\.weight \(64, 64\) instead of \(64, 64, 1, 1\)$",
        ),
        (
            lambda w: w.update({"temb.dense.2.bias": w.pop("temb.dense.1.bias"), "module.conv_in.bias": torch.ones(1)}),
            r"1 missing, 2 extra\.\nmissing: temb\.dense\.1\.bias\nextra: temb\.dense\.2\.bias, module\.conv_in\.bias$",
        ),
        (
            lambda w: [w.pop(name) for name in [*w] if name.startswith("down.0")],
            r"12 missing\.\nmissing: (down\.0\S+, ){11}down\.0\S+$",
        ),
    ],
)
def test_weights_that_do_not_fit_are_listed(official, tmp_path, change, message):
    weights = official.state_dict()
    change(weights)
    torch.save(weights, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match=r"^`path` '.*model\.ckpt' does not fit `config` \{.*: " + message):
        load_official_checkpoint(tmp_path / "model.ckpt", SMALL)


@pytest.mark.parametrize("config", ["cifar10", "church", {**SMALL, "attn_resolutions": [16]}])
def test_config_of_another_network(checkpoint, config):
    with pytest.raises(ValueError, match=r"small\.ckpt' does not fit `config` .*: \d+ (missing|extra)"):
        load_official_checkpoint(checkpoint, config)


def test_weights_of_diffusers_are_refused(checkpoint):
    weights = load_official_checkpoint(checkpoint, SMALL).unet.state_dict()
    torch.save(weights, checkpoint)
    with pytest.raises(ValueError, match=r"\nmissing: .*\nextra: "):
        load_official_checkpoint(checkpoint, SMALL)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {"conv_in.weight": torch.zeros(1)}},
        {"conv_in.weight": [1.0, 2.0]},
        {"conv_in.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int64)},
        {3: torch.zeros(1)},
        torch.zeros(3),
        [{}, {}, 1],
        [{}, {}, 1, 2, None],
        "conv_in.weight",
        {},
    ],
)
def test_file_without_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=r"`path` '.*other\.ckpt'"):
        load_official_checkpoint(tmp_path / "other.ckpt", SMALL)


@pytest.mark.parametrize("content", [b"", b"These are no weights.\n", b"PK\x03\x04 broken", pickle.dumps({}), "half"])
def test_file_that_is_no_checkpoint(checkpoint, content):
    if content == "half":
        whole = checkpoint.read_bytes()
        content = whole[: len(whole) // 2]
    checkpoint.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` '.*small\.ckpt' cannot be loaded"):
        load_official_checkpoint(checkpoint, SMALL)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nowhere.ckpt", tmp_path):
        with pytest.raises(ValueError, match=f"`path` must be an existing file, but is '{path}'"):
            load_official_checkpoint(path, SMALL)


class Malicious:
    def __init__(self, sentinel):
        self.sentinel = str(sentinel)

    def __reduce__(self):
        return os.mkdir, (self.sentinel,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["weights", "optimizer", "file"])
def test_code_in_a_file_is_not_run(official, tmp_path, zipped, place):
    path, sentinel = tmp_path / "malicious.ckpt", tmp_path / "sentinel"
    code, weights = Malicious(sentinel), official.state_dict()
    content = {"weights": {**weights, "x": code}, "optimizer": [weights, code, 1, 2, weights], "file": code}[place]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"`path` '.*malicious\.ckpt' cannot be loaded") as info:
        load_official_checkpoint(path, SMALL)
    assert not sentinel.exists()
    assert "weights_only" not in "".join(map(str, (info.value, info.value.__cause__)))  # no advice to load it anyway
    torch.load(path, weights_only=False)
    assert sentinel.exists()  # the file was a fair test


# --------------------------------------------------------------------------------------------------------- wrong config


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ("imagenet", "config"),
        (["cifar10"], "config"),
        ({name: value for name, value in SMALL.items() if name != "ch_mult"}, "config"),
        ({**SMALL, "image_size": 16}, "config"),
        ({**SMALL, "var_type": "fixedlarge"}, "config"),
        ({**SMALL, "ch": 48}, "ch"),
        ({**SMALL, "ch": "32"}, "ch"),
        ({**SMALL, "ch_mult": []}, "ch_mult"),
        ({**SMALL, "ch_mult": 2}, "ch_mult"),
        ({**SMALL, "ch_mult": [1, 2.5]}, "ch_mult"),
        ({**SMALL, "ch_mult": [2, 2]}, "ch_mult"),
        ({**SMALL, "num_res_blocks": 0}, "num_res_blocks"),
        ({**SMALL, "attn_resolutions": 8}, "attn_resolutions"),
        ({**SMALL, "resolution": 15}, "resolution"),
        ({**SMALL, "out_ch": 6}, "out_ch"),
        ({**SMALL, "dropout": float("nan")}, "dropout"),
        ({**SMALL, "resamp_with_conv": False}, "resamp_with_conv"),
        ({**SMALL, "beta_start": -1.0}, "beta_start"),
        ({**SMALL, "beta_end": 2.0}, "beta_end"),
        ({**SMALL, "num_diffusion_timesteps": 0}, "num_diffusion_timesteps"),
    ],
)
def test_bad_config_is_refused_before_the_file_is_read(tmp_path, config, name):
    with pytest.raises((ValueError, TypeError), match=f"^`{name}`"):
        load_official_checkpoint(tmp_path / "nowhere.ckpt", config)


# ---------------------------------------------------------------------------------------------------------- the command


def test_command_writes_a_pipeline_that_samples(checkpoint, tmp_path):
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    command = [sys.executable, "-W", "error::RuntimeWarning", "-m", "ddim_scheduler.checkpoints"]
    command += [str(checkpoint), str(tmp_path / "model"), "--config", str(tmp_path / "small.json")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert str(tmp_path / "model") in printed

    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert type(pipeline) is EtaDDIMPipeline
    assert not pipeline.scheduler.config.clip_sample
    images = pipeline(num_inference_steps=3, seed=0, output_type="pt").images
    direct = load_official_checkpoint(checkpoint, SMALL)
    direct.set_progress_bar_config(disable=True)
    assert (images - direct(num_inference_steps=3, seed=0, output_type="pt").images).abs().max() < 1e-5


def test_command_takes_the_weights_of_the_model(official, tmp_path):
    averaged = make_official(SMALL, seed=1).state_dict()
    torch.save([official.state_dict(), {}, 1, 2, averaged], tmp_path / "ckpt.pth")
    (tmp_path / "small.json").write_text(json.dumps(SMALL))
    for flags, expected in (((), averaged), (("--no_ema",), official.state_dict())):
        folder = tmp_path / f"model{len(flags)}"
        main([str(tmp_path / "ckpt.pth"), str(folder), "--config", str(tmp_path / "small.json"), *flags])
        unet = UNet2DModel.from_pretrained(folder / "unet")
        assert torch.equal(unet.conv_out.weight, expected["conv_out.weight"])


def test_command_leaves_a_folder_that_holds_files_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    for output_dir in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(SystemExit):
            main([str(tmp_path / "nowhere.ckpt"), str(output_dir), "--config", "cifar10"])
        assert "output_dir must be a new or an empty folder" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["thesis.txt"]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "--config"), ("{", "--config"), ("[1]", "`config`"), ('{"ch": 32}', "`config`")]
)
def test_command_with_a_bad_config(checkpoint, tmp_path, capsys, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SystemExit):
        main([str(checkpoint), str(tmp_path / "model"), "--config", str(tmp_path / "config.json")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_command_with_a_wrong_file(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no weights")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "notes.txt"), str(tmp_path / "model"), "--config", "cifar10"])
    assert "notes.txt" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
