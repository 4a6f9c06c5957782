"""The table of coefficients against an independent computation with 50 digits, and float32 steps against float64."""

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from ddim_scheduler import EtaDDIMScheduler
from ddim_scheduler.scheduling_ddim import BETA_SCHEDULES, TIMESTEP_SPACINGS

mpmath.mp.dps = 50


def oracle_alphas_cumprod(beta_schedule, T, beta_start=0.0001, beta_end=0.02, zero_snr=False):
    """alpha-bar with 50 digits, from the published definitions of the schedules."""
    start, end = mpf(beta_start), mpf(beta_end)

    def line(low, high):
        return [low + (high - low) * i / (T - 1) for i in range(T)]

    def from_alpha_bar(alpha_bar):
        return [min(1 - alpha_bar(mpf(i + 1) / T) / alpha_bar(mpf(i) / T), mpf(0.999)) for i in range(T)]

    def laplace(u):
        log_snr = -mpmath.sign(mpf(0.5) - u) * mpmath.log(1 - 2 * abs(mpf(0.5) - u) + mpf(1e-6)) / 2
        if u == mpf(0.5):
            log_snr = -mpmath.log(1 + mpf(1e-6)) / 2
        return mpmath.sqrt(1 / (1 + mpmath.exp(-log_snr)))

    betas = {
        "linear": lambda: line(start, end),
        "scaled_linear": lambda: [b**2 for b in line(mpmath.sqrt(start), mpmath.sqrt(end))],
        "sigmoid": lambda: [start + (end - start) / (1 + mpmath.exp(-x)) for x in line(mpf(-6), mpf(6))],
        "squaredcos_cap_v2": lambda: from_alpha_bar(
            lambda u: mpmath.cos((u + mpf(0.008)) / mpf(1.008) * mpmath.pi / 2) ** 2
        ),
        "exp": lambda: from_alpha_bar(lambda u: mpmath.exp(-12 * u)),
        "laplace": lambda: from_alpha_bar(laplace),
    }[beta_schedule]()
    bars = []
    for beta in betas:
        bars.append((bars[-1] if bars else mpf(1)) * (1 - beta))
    if zero_snr:
        roots = [mpmath.sqrt(bar) for bar in bars]
        bars = [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]
    return bars


def relative_error(ours, oracle):
    """Of two numbers; the oracle's own 50 digits cannot tell less than 1e-20 from 0."""
    return float(abs(mpf(ours) - oracle) / oracle) if oracle > 1e-20 else abs(ours)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("T", [50, 1000])
def test_table_has_twelve_correct_digits(beta_schedule, zero_snr, T, record_property):
    scheduler = EtaDDIMScheduler(
        T, beta_schedule=beta_schedule, rescale_betas_zero_snr=zero_snr, prediction_type="v_prediction"
    )
    bars = oracle_alphas_cumprod(beta_schedule, T, zero_snr=zero_snr)
    worst = 0.0
    for spacing in TIMESTEP_SPACINGS:
        scheduler.register_to_config(timestep_spacing=spacing)
        for n in (7, 37):
            scheduler.set_timesteps(n)
            for t in scheduler.timesteps.tolist():
                s = scheduler.previous_timestep(t)
                bar_t, bar_s = bars[t], bars[s] if s >= 0 else mpf(1)
                std = mpmath.sqrt((1 - bar_s) / (1 - bar_t)) * mpmath.sqrt(1 - bar_t / bar_s)
                oracle = (
                    mpmath.sqrt(bar_t),
                    mpmath.sqrt(1 - bar_t),
                    mpmath.sqrt(bar_s),
                    mpmath.sqrt(1 - bar_s),
                    std,
                    mpmath.sqrt(max(mpf(0), 1 - bar_s - std**2)),
                    mpmath.sqrt(1 - bar_t / bar_s),
                )
                for ours, exact in zip(scheduler._table.row(t), oracle, strict=True):
                    worst = max(worst, relative_error(ours, exact))
    record_property("largest relative error", worst)
    assert worst < 1e-12


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("batch_of_timesteps", [False, True])
def test_float32_step_is_within_4_ulp(prediction_type, eta, beta_schedule, batch_of_timesteps, record_property):
    """
    Against float64. Without clipping a step is a sum of three terms, in x_t, in the model output and in z; the ulp is
    that of the largest among the terms and their sum.
    """
    scheduler = EtaDDIMScheduler(
        prediction_type=prediction_type,
        beta_schedule=beta_schedule,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    generator = torch.Generator().manual_seed(0)
    x, output, z = torch.randn(3, 2, 3, 32, 32, generator=generator)
    zero = torch.zeros_like(x).double()
    for n in (7, 50, 1000):
        scheduler.set_timesteps(n)
        for t in scheduler.timesteps[:: max(1, n // 10)].tolist():
            timestep = torch.tensor([t, t]) if batch_of_timesteps else t
            result = scheduler.step(output, timestep, x, eta=eta, variance_noise=z).prev_sample
            terms = [
                scheduler.step(m, t, v, eta=eta, variance_noise=w).prev_sample
                for m, v, w in ((output.double(), zero, zero), (zero, x.double(), zero), (zero, zero, z.double()))
            ]
            ulp = np.spacing(torch.stack([*terms, sum(terms)]).abs().amax(0).float().numpy())
            error = float(((result - sum(terms)).abs().numpy() / ulp).max())
            record_property("largest error in ulp", error)
            assert error <= 4, (n, t)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.bfloat16, 0.75), (torch.float16, 0.9)])
def test_half_precision_loop_is_better_than_that_of_diffusers(dtype, bound, record_property):
    """100 steps with a half-precision state on N(0, 1/4) data with the exact denoiser, against the loop in float64."""
    from diffusers import DDIMScheduler

    import exact

    bars, denoiser = exact.alphas_cumprod(), exact.gaussian(0.0, 0.5)
    start = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    errors = {}
    for scheduler_class in (EtaDDIMScheduler, DDIMScheduler):
        scheduler = scheduler_class(clip_sample=False)
        scheduler.set_timesteps(100)
        result = exact.sample(scheduler, denoiser, start, bars)
        assert result.dtype == dtype
        ours = EtaDDIMScheduler(clip_sample=False)
        ours.set_timesteps(100)
        reference = exact.sample(ours, denoiser, start.double(), bars)
        errors[scheduler_class] = (result.double() - reference).square().mean().sqrt().item()
    record_property("error over that of diffusers each", errors[EtaDDIMScheduler] / errors[DDIMScheduler])
    assert errors[EtaDDIMScheduler] < bound * errors[DDIMScheduler]
