"""Exact denoisers of known data, and the paper's formulas in float64, written without the package under test."""

import math
from collections.abc import Callable

import torch
from diffusers import UNet2DModel
from diffusers.models.unets.unet_2d import UNet2DOutput

Denoiser = Callable[[torch.Tensor, float], torch.Tensor]
SMALL_UNET = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}


def alphas_cumprod(num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> torch.Tensor:
    """DDPM's alpha-bar for the linear schedule, float64."""
    return (1 - torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)).cumprod(0)


def point_mass(x_0: torch.Tensor) -> Denoiser:
    """E[x_0 | x_t] if all data are the one point x_0."""
    return lambda x_t, alpha_bar: x_0.expand_as(x_t)


def gaussian(mean: float, std: float) -> Denoiser:
    """E[x_0 | x_t] for data of N(mean, std^2 I)."""

    def denoise(x_t, alpha_bar):
        gain = math.sqrt(alpha_bar) * std**2 / (alpha_bar * std**2 + 1 - alpha_bar)
        return mean + gain * (x_t - math.sqrt(alpha_bar) * mean)

    return denoise


def gaussian_flow(x_t: torch.Tensor, alpha_bar: float, mean: float, std: float) -> torch.Tensor:
    """Where the probability flow ODE of N(mean, std^2 I) takes x_t at noise level 0: standardise, then rescale."""
    scale = math.sqrt(alpha_bar * std**2 + 1 - alpha_bar)
    return mean + std * (x_t - math.sqrt(alpha_bar) * mean) / scale


def empirical(data: torch.Tensor) -> Denoiser:
    """E[x_0 | x_t] if the data are the rows of `data` (K, ...), each as likely as the others."""

    def denoise(x_t, alpha_bar):
        distances = (x_t[:, None] - math.sqrt(alpha_bar) * data[None]).flatten(2).square().sum(2)
        weights = torch.softmax(-distances / (2 * (1 - alpha_bar)), dim=1)
        return torch.einsum("bk,k...->b...", weights, data)

    return denoise


def gaussian_mixture(means: torch.Tensor, std: float) -> Denoiser:
    """E[x_0 | x_t] if x_0 is a row of `means` (K, ...), each as likely as the others, plus N(0, std^2 I)."""

    def denoise(x_t, alpha_bar):
        alpha, variance = math.sqrt(alpha_bar), alpha_bar * std**2 + 1 - alpha_bar
        distances = (x_t[:, None] - alpha * means[None]).flatten(2).square().sum(2)
        mean = torch.einsum("bk,k...->b...", torch.softmax(-distances / (2 * variance), dim=1), means)
        return mean + alpha * std**2 / variance * (x_t - alpha * mean)

    return denoise


def model_output(prediction_type: str, x_0: torch.Tensor, x_t: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """What a model of that kind returns if it denoises x_t to x_0."""
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    if prediction_type == "sample":
        return x_0
    epsilon = (x_t - alpha * x_0) / sigma
    return epsilon if prediction_type == "epsilon" else alpha * epsilon - sigma * x_0


def ddim_step(x_t, epsilon, alpha_bar_t: float, alpha_bar_s: float, eta: float = 0.0, z=0.0, clip: float = math.inf):
    """Equations (12) and (16) of the paper, as printed there. Returns x_s."""
    std = eta * math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t)) * math.sqrt(1 - alpha_bar_t / alpha_bar_s)
    x_0 = ((x_t - math.sqrt(1 - alpha_bar_t) * epsilon) / math.sqrt(alpha_bar_t)).clamp(-clip, clip)
    return math.sqrt(alpha_bar_s) * x_0 + math.sqrt(1 - alpha_bar_s - std**2) * epsilon + std * z


def sample(scheduler, denoiser: Denoiser, x: torch.Tensor, bars: torch.Tensor, prediction_type="epsilon", **kwargs):
    """The sampling loop over `scheduler.timesteps` with an exact denoiser."""
    for t in scheduler.timesteps:
        alpha_bar = bars[t].item()
        x_0 = denoiser(x.double(), alpha_bar)
        output = model_output(prediction_type, x_0, x.double(), alpha_bar).to(x.dtype)
        x = scheduler.step(output, t, x, **kwargs).prev_sample
    return x


class ExactUNet(UNet2DModel):
    """A UNet whose output is that of `denoiser`, as a model of the kind `prediction_type` gives it."""

    denoiser: Denoiser
    prediction_type = "epsilon"
    bars = alphas_cumprod()

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        bar = self.bars[int(timestep)].item()
        x_t = sample.double()
        output = model_output(self.prediction_type, self.denoiser(x_t, bar), x_t, bar)
        return UNet2DOutput(sample=output.to(sample.dtype))
