"""Laws of the scheduler: closed forms, exact denoisers, order of convergence, equality with diffusers where right."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)

from ddim_scheduler import EtaDDIMScheduler, EtaFlowMatchScheduler
from ddim_scheduler.scheduling_ddim import BETA_SCHEDULES, TIMESTEP_SPACINGS

import exact

BARS = exact.alphas_cumprod()
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def max_error(a, b):
    return (a.double() - b.double()).abs().max().item()


# ------------------------------------------------------------------------------------------------------------ the grid


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("num_train_timesteps", [10, 50, 100, 1000, 4000])
def test_grid_has_n_decreasing_timesteps_in_range(spacing, num_train_timesteps):
    """And each step goes to the next of them: without noise, x_t = alpha_t x_0, it ends at alpha_s x_0."""
    settings = {"timestep_spacing": spacing, "steps_offset": 1, "prediction_type": "sample"}
    scheduler = EtaDDIMScheduler(num_train_timesteps, **settings)
    alphas = scheduler.alphas_cumprod.double().sqrt()
    for n in range(1, num_train_timesteps + 1, 1 if num_train_timesteps <= 1000 else 97):
        scheduler.set_timesteps(n)
        timesteps = scheduler.timesteps
        assert timesteps.dtype == torch.int64
        assert len(timesteps) == n == scheduler.num_inference_steps
        assert (timesteps.diff() < 0).all()
        assert 0 <= timesteps[-1] <= timesteps[0] <= num_train_timesteps - 1
        x_t, x_s = alphas[timesteps], torch.cat([alphas[timesteps[1:]], alphas.new_ones(1)])
        result = scheduler.step(torch.ones_like(x_t), timesteps, x_t, return_dict=False)[0]
        assert (result / x_s - 1).abs().max() < 1e-5
    grid = timesteps.tolist()
    assert [scheduler.previous_timestep(t) for t in grid] == [*grid[1:], -1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_grid_equals_diffusers_where_diffusers_is_right(spacing):
    ours, theirs = EtaDDIMScheduler(timestep_spacing=spacing), DDIMScheduler(timestep_spacing=spacing)
    wrong_length = 0
    for n in range(1, 1001):
        ours.set_timesteps(n)
        theirs.set_timesteps(n)
        if len(theirs.timesteps) == n:
            assert torch.equal(ours.timesteps, theirs.timesteps), n
        else:
            assert torch.equal(ours.timesteps, theirs.timesteps[:n]), n
            wrong_length += 1
    assert wrong_length == (62 if spacing == "trailing" else 0)


def test_numpy_numbers_are_taken_as_arguments_of_calls():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(np.uint8(10))
    assert scheduler.timesteps.tolist() == [*range(900, -1, -100)]
    x = randn(1, 1, 2, 2)
    expected = scheduler.step(x, 500, x, eta=0.5, variance_noise=x).prev_sample
    for timestep in (np.int64(500), torch.tensor([[500]], dtype=torch.int16)):
        assert torch.equal(scheduler.step(x, timestep, x, eta=np.float32(0.5), variance_noise=x).prev_sample, expected)


def test_nearly_all_noise_is_finite():
    scheduler = EtaDDIMScheduler(trained_betas=[0.999] * 1000, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    x = randn(10, 1, 2, 2)
    assert scheduler.step(x, scheduler.timesteps, x, eta=1.0, variance_noise=x).prev_sample.isfinite().all()


def test_quadratic_grid_equals_the_official_quad_where_that_is_distinct():
    scheduler = EtaDDIMScheduler(timestep_spacing="quadratic")
    compared = 0
    for n in range(1, 1001):
        official = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), n) ** 2]
        if len(set(official)) == n:
            compared += 1
            scheduler.set_timesteps(n)
            assert scheduler.timesteps.tolist() == official[::-1]
    assert compared >= 28


def test_leading_offset_is_lowered_to_stay_in_range():
    scheduler = EtaDDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert scheduler.timesteps[[0, -1]].tolist() == [981, 1]
    scheduler.set_timesteps(1000)
    assert scheduler.timesteps[[0, -1]].tolist() == [999, 0]


def test_custom_timesteps_and_a_timestep_between_two_of_them():
    scheduler = EtaDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(timesteps=[900, 400, 30])
    assert scheduler.timesteps.tolist() == [900, 400, 30]
    assert [scheduler.previous_timestep(t) for t in (999, 900, 401, 400, 31, 30, 0)] == [900, 400, 400, 30, 30, -1, -1]
    x, epsilon = randn(2, 3, 4, 4), randn(2, 3, 4, 4, seed=1)
    expected = exact.ddim_step(x.double(), epsilon.double(), BARS[650].item(), BARS[400].item())
    assert max_error(scheduler.step(epsilon, 650, x).prev_sample, expected) < 1e-6 * expected.abs().max()


# ---------------------------------------------------------------------------------------------------------- known data


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_point_mass_is_returned(spacing, prediction_type, eta, record_property):
    # |x_T| <= 1/2: one step from t = 999 divides the float32 rounding of epsilon itself by alpha_t = 0.006
    start, data = randn(2, 3, 4, 4).clamp(-0.5, 0.5), randn(2, 3, 4, 4, seed=1, dtype=torch.float64).clamp(-1, 1)
    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, prediction_type=prediction_type, clip_sample=False)
    many = (1000 if eta else 999,) if prediction_type == "epsilon" else ()  # the same tables, and the longest loop
    for n in (1, 2, 3, 7, 10, 50, 61, 103, *many):
        scheduler.set_timesteps(n)
        generator = torch.Generator().manual_seed(2)
        result = exact.sample(
            scheduler, exact.point_mass(data), start, BARS, prediction_type, eta=eta, generator=generator
        )
        record_property("largest error", max_error(result, data))
        assert max_error(result, data) < 1e-5, n


def slope_of_error(scheduler, step_counts=(7, 11, 13, 23, 37, 61, 103, 151)):
    """Slope of log(error at the end point) against log(steps) on Gaussian data."""
    start = randn(64, 1, dtype=torch.float64)
    errors = []
    for n in step_counts:
        scheduler.set_timesteps(n)
        solution = exact.gaussian_flow(start, BARS[scheduler.timesteps[0]].item(), 0.3, 0.5)
        errors.append(max_error(exact.sample(scheduler, exact.gaussian(0.3, 0.5), start, BARS), solution))
    return float(np.polyfit(np.log(step_counts), np.log(errors), 1)[0])


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_first_order_convergence_on_gaussian_data(spacing, record_property):
    slope = slope_of_error(EtaDDIMScheduler(timestep_spacing=spacing, clip_sample=False))
    record_property("slope each", slope)
    assert -1.15 < slope < -0.85


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_diffusers_misses_first_order(spacing, record_property):
    slope = slope_of_error(DDIMScheduler(timestep_spacing=spacing, clip_sample=False))
    record_property("slope each", slope)
    assert slope > -0.6


@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
def test_an_empirical_denoiser_ends_on_its_data(spacing):
    data = randn(5, 1, 4, 4, seed=3, dtype=torch.float64)
    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(20)
    result = exact.sample(scheduler, exact.empirical(data), randn(8, 1, 4, 4), BARS)
    distances = (result[:, None] - data[None]).abs().amax((2, 3, 4)).amin(1)
    assert distances.max() < 1e-4


# --------------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(999, 979), (500, 250), (1, 0), (20, -1)])
def test_step_is_equation_12_in_float64(eta, t, s):
    scheduler = EtaDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(timesteps=[t, s] if s >= 0 else [t])
    x, epsilon, z = (randn(2, 3, 4, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    bar_s = BARS[s].item() if s >= 0 else 1.0
    expected = exact.ddim_step(x, epsilon, BARS[t].item(), bar_s, eta, z)
    result = scheduler.step(epsilon, t, x, eta=eta, variance_noise=z).prev_sample
    assert result.dtype == torch.float64
    assert max_error(result, expected) < 1e-11 * expected.abs().max()


def test_eta_one_on_adjacent_timesteps_is_the_ddpm_posterior(record_property):
    """Equations (6) and (7) of DDPM (https://arxiv.org/abs/2006.11239), with the predicted x_0."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    scheduler = EtaDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(1000)
    x, epsilon = randn(2, 3, 4, 4, dtype=torch.float64), randn(2, 3, 4, 4, seed=1, dtype=torch.float64)
    for t in (1, 2, 10, 500, 999):
        beta, bar, previous_bar = betas[t], BARS[t], BARS[t - 1]
        x_0 = (x - (1 - bar).sqrt() * epsilon) / bar.sqrt()
        mean = (previous_bar.sqrt() * beta * x_0 + (1 - beta).sqrt() * (1 - previous_bar) * x) / (1 - bar)
        std = ((1 - previous_bar) / (1 - bar) * beta).sqrt()
        without, with_noise = (
            scheduler.step(epsilon, t, x, eta=1.0, variance_noise=z).prev_sample
            for z in (torch.zeros_like(x), torch.ones_like(x))
        )
        record_property("largest error of the mean", max_error(without, mean))
        record_property("largest error of the std", max_error(with_noise - without, std.expand_as(x)))
        assert max_error(without, mean) < 1e-11
        assert max_error(with_noise - without, std.expand_as(x)) < 1e-11
        assert scheduler._get_variance(t, t - 1).item() == pytest.approx(std.item() ** 2, rel=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_loop_equals_diffusers_on_leading(prediction_type, clip_sample, eta, record_property):
    settings = {"prediction_type": prediction_type, "clip_sample": clip_sample}
    ours, theirs = EtaDDIMScheduler(**settings), DDIMScheduler(**settings)
    ours.set_timesteps(50)
    theirs.set_timesteps(50)
    x = y = randn(2, 3, 8, 8)
    for t in theirs.timesteps:
        output, z = randn(2, 3, 8, 8, seed=int(t)), randn(2, 3, 8, 8, seed=int(t) + 1000)
        x = ours.step(output, t, x, eta=eta, variance_noise=z).prev_sample
        y = theirs.step(output, t, y, eta=eta, variance_noise=z).prev_sample
        record_property("largest relative difference", max_error(x, y) / y.abs().max().item())
        assert max_error(x, y) < 5e-5 * y.abs().max()


@pytest.mark.parametrize("num_inference_steps", [20, 50, 100])
@pytest.mark.parametrize("clip", [1.0, math.inf])
def test_loop_in_float32_is_closer_to_the_formula_than_that_of_diffusers(num_inference_steps, clip, record_property):
    """Against equations (12) and (16) in float64, on Gaussian data with the exact denoiser; mean of 5 worst errors."""
    denoiser = exact.gaussian(0.1, 0.5)
    errors = {EtaDDIMScheduler: 0.0, DDIMScheduler: 0.0}
    for scheduler_class in errors:
        scheduler = scheduler_class(clip_sample=clip == 1)
        scheduler.set_timesteps(num_inference_steps)
        for seed in range(5):
            reference = randn(8, 3, 16, 16, seed=seed).double()
            x = exact.sample(scheduler, denoiser, reference.float(), BARS)
            for t, s in pairwise([*scheduler.timesteps.tolist(), None]):
                bar_t, bar_s = BARS[t].item(), 1.0 if s is None else BARS[s].item()
                epsilon = exact.model_output("epsilon", denoiser(reference, bar_t), reference, bar_t)
                reference = exact.ddim_step(reference, epsilon, bar_t, bar_s, clip=clip)
            errors[scheduler_class] += max_error(x, reference) / 5
    record_property("error over that of diffusers", errors[EtaDDIMScheduler] / errors[DDIMScheduler])
    assert errors[EtaDDIMScheduler] < errors[DDIMScheduler]


@pytest.mark.parametrize("use_clipped_model_output", [True, False])
def test_clipping_and_thresholding_equal_diffusers(use_clipped_model_output):
    x, output = randn(2, 3, 16, 16), randn(2, 3, 16, 16, seed=1)
    for settings in (
        {"clip_sample_range": 0.7},
        {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9},
        {"thresholding": True, "sample_max_value": 100.0, "dynamic_thresholding_ratio": 1.0},
    ):
        ours, theirs = EtaDDIMScheduler(**settings), DDIMScheduler(**settings)
        ours.set_timesteps(10)
        theirs.set_timesteps(10)
        for t in (900, 500, 0):
            a = ours.step(output, t, x, use_clipped_model_output=use_clipped_model_output)
            b = theirs.step(output, t, x, use_clipped_model_output=use_clipped_model_output)
            scale = max(1.0, b.prev_sample.abs().max().item())
            assert max_error(a.prev_sample, b.prev_sample) < 1e-5 * scale
            assert max_error(a.pred_original_sample, b.pred_original_sample) < 1e-5


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("rescale_betas_zero_snr", [False, True])
def test_finite_for_every_schedule_spacing_step_count_and_eta(beta_schedule, rescale_betas_zero_snr):
    for spacing in TIMESTEP_SPACINGS:
        scheduler = EtaDDIMScheduler(
            beta_schedule=beta_schedule,
            timestep_spacing=spacing,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        for n in (*range(1, 21), 50, 61, 103, 150, 199, 200):
            scheduler.set_timesteps(n)
            x = torch.ones(4 * n, 1)  # one sample for each timestep and eta
            timesteps, etas = scheduler.timesteps.repeat(4), torch.tensor([0.0, 0.2, 0.5, 1.0]).repeat_interleave(n)
            result = scheduler.step(x, timesteps, x, eta=etas, variance_noise=x)
            assert result.prev_sample.isfinite().all(), (spacing, n)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("rescale_betas_zero_snr", [False, True])
def test_public_tables_equal_diffusers(beta_schedule, rescale_betas_zero_snr):
    settings = {"beta_schedule": beta_schedule, "rescale_betas_zero_snr": rescale_betas_zero_snr}
    ours, theirs = EtaDDIMScheduler(**settings), DDIMScheduler(**settings)
    for name in ("betas", "alphas", "alphas_cumprod"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.dtype == torch.float32
        assert max_error(a, b) < 2e-5
    if rescale_betas_zero_snr:
        assert ours.alphas_cumprod[-1] == 0


def test_sigmoid_schedule_equals_ddpm_scheduler():
    ours, theirs = EtaDDIMScheduler(beta_schedule="sigmoid"), DDPMScheduler(beta_schedule="sigmoid")
    assert max_error(ours.alphas_cumprod, theirs.alphas_cumprod) < 1e-5


# ---------------------------------------------------------------------------------------- noise, dtypes, batches, state


def test_eta_zero_touches_no_random_state():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    generator = torch.Generator().manual_seed(0)
    before, own_before = torch.get_rng_state(), generator.get_state()
    x = randn(1, 3, 4, 4)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x, generator=generator).prev_sample
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(generator.get_state(), own_before)


def test_generator_list_gives_each_image_its_own_noise():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    x, output = randn(3, 1, 4, 4), randn(3, 1, 4, 4, seed=1)
    generators = [torch.Generator().manual_seed(k) for k in range(3)]
    batch = scheduler.step(output, 500, x, eta=1.0, generator=generators).prev_sample
    for k in range(3):
        single = scheduler.step(
            output[k : k + 1], 500, x[k : k + 1], eta=1.0, generator=torch.Generator().manual_seed(k)
        ).prev_sample
        assert torch.equal(batch[k : k + 1], single)


@pytest.mark.parametrize("scheduler", [EtaDDIMScheduler(), EtaFlowMatchScheduler()])
def test_number_of_generators_matters_where_they_are_used(scheduler):
    """As for diffusers' `randn_tensor` a list of one serves all; pipelines for video give one for each video."""
    scheduler.set_timesteps(10)
    x, t = randn(4, 1, 4, 4), scheduler.timesteps[3]
    make = torch.Generator
    for return_dict in (False, True):
        for number in (0, 1, 2, 4):
            step = scheduler.step(x, t, x, eta=0.0, generator=[make()] * number, return_dict=return_dict)
        of_one = scheduler.step(x, t, x, eta=0.5, generator=[make().manual_seed(3)], return_dict=return_dict)
        alone = scheduler.step(x, t, x, eta=0.5, generator=make().manual_seed(3), return_dict=return_dict)
        assert torch.equal(of_one[0], alone[0])
        assert not torch.equal(of_one[0], step[0])
        for number in (0, 2, 5):
            with pytest.raises(ValueError, match=f"`generator` must hold .* 4 samples, but holds {number}"):
                scheduler.step(x, t, x, eta=0.5, generator=[make()] * number, return_dict=return_dict)
        with pytest.raises(TypeError, match="`generator`"):
            scheduler.step(x, t, x, eta=0.0, generator=[3], return_dict=return_dict)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_batched_timesteps_and_etas_equal_single_steps_bit_for_bit(prediction_type, dtype):
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    x, output, z = (randn(4, 3, 5, 7, seed=seed).to(dtype) for seed in range(3))
    timesteps, etas = torch.tensor([950, 500, 50, 0]), torch.tensor([0.0, 0.3, 0.7, 1.0], dtype=torch.float64)
    batch = scheduler.step(output, timesteps, x, eta=etas, variance_noise=z)
    for k, (t, eta) in enumerate(zip(timesteps.tolist(), etas.tolist(), strict=True)):
        for timestep in (t, torch.tensor(t), torch.tensor([t])):
            single = scheduler.step(output[k : k + 1], timestep, x[k : k + 1], eta=eta, variance_noise=z[k : k + 1])
            assert single.prev_sample.dtype == dtype
            assert torch.equal(batch.prev_sample[k : k + 1], single.prev_sample)
            assert torch.equal(batch.pred_original_sample[k : k + 1], single.pred_original_sample)


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_both_outputs_have_the_dtype_of_the_sample(prediction_type, clip_sample):
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type, clip_sample=clip_sample)
    scheduler.set_timesteps(10)
    dtypes = (torch.float64, torch.float32, torch.bfloat16)
    for dtype in dtypes:
        for output_dtype in dtypes:
            x, output = randn(2, 1, 4, 4).to(dtype), randn(2, 1, 4, 4, seed=1).to(output_dtype)
            for t in (500, torch.tensor([500, 100])):
                results = scheduler.step(output, t, x, eta=0.5, return_dict=False)
                assert [result.dtype for result in results] == [dtype, dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_half_precision_step_is_the_formula_rounded_once(dtype, eta):
    scheduler = EtaDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    x, epsilon, z = (randn(2, 3, 8, 8, seed=seed).to(dtype) for seed in range(3))
    for t in (980, 500, 20):
        result = scheduler.step(epsilon, t, x, eta=eta, variance_noise=z).prev_sample
        args = (x.double(), epsilon.double(), BARS[t].item(), BARS[t - 20].item(), eta, z.double())
        expected = exact.ddim_step(*args)
        assert result.dtype == dtype
        # float32 arithmetic may fall on the other side of a rounding boundary: 1 ulp
        ulp = torch.finfo(dtype).eps * expected.abs().clamp(min=torch.finfo(dtype).tiny)
        assert ((result.double() - expected).abs() <= ulp).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2"])
def test_add_noise_and_velocity(dtype, beta_schedule):
    scheduler = EtaDDIMScheduler(beta_schedule=beta_schedule)
    bars = torch.exp(torch.from_numpy(scheduler._log_alphas_cumprod))
    x, noise = randn(5, 3, 4, 4).to(dtype), randn(5, 3, 4, 4, seed=1).to(dtype)
    timesteps = torch.tensor([0, 1, 9, 500, 999])
    alpha, sigma = bars[timesteps].sqrt().view(-1, 1, 1, 1), (1 - bars[timesteps]).sqrt().view(-1, 1, 1, 1)
    tolerance = 4 * torch.finfo(dtype).eps
    noisy = scheduler.add_noise(x, noise, timesteps)
    assert noisy.dtype == dtype
    assert max_error(noisy, alpha * x.double() + sigma * noise.double()) < tolerance
    velocity = scheduler.get_velocity(x, noise, timesteps)
    assert max_error(velocity, alpha * noise.double() - sigma * x.double()) < tolerance
    assert not torch.equal(noisy[:1], x[:1])
    assert scheduler.alphas_cumprod.dtype == torch.float32


def test_x_0_and_noise_are_recovered_from_add_noise():
    x, noise = randn(4, 1, 4, 4, dtype=torch.float64), randn(4, 1, 4, 4, seed=1, dtype=torch.float64)
    timesteps = torch.tensor([0, 100, 500, 999])
    for prediction_type, target in (
        ("epsilon", lambda s: noise),
        ("v_prediction", lambda s: s.get_velocity(x, noise, timesteps)),
    ):
        scheduler = EtaDDIMScheduler(prediction_type=prediction_type, clip_sample=False)
        scheduler.set_timesteps(10)
        noisy = scheduler.add_noise(x, noise, timesteps)
        assert max_error(scheduler.step(target(scheduler), timesteps, noisy).pred_original_sample, x) < 1e-12


def test_inputs_and_scheduler_are_left_alone():
    scheduler = EtaDDIMScheduler(prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(10)
    x, output, z = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1), randn(2, 1, 4, 4, seed=2)
    copies = x.clone(), output.clone(), z.clone()
    state = dict(vars(scheduler))
    scheduler.step(output, 500, x, eta=1.0, variance_noise=z)
    scheduler.add_noise(x, z, torch.tensor([1, 2]))
    assert all(torch.equal(a, b) for a, b in zip((x, output, z), copies, strict=True))
    assert all(vars(scheduler)[name] is value for name, value in state.items())


# -------------------------------------------------------------------------------------------------------------- config


def test_config_survives_json(tmp_path):
    betas = torch.linspace(0.001, 0.02, 20, dtype=torch.float64)
    scheduler = EtaDDIMScheduler(20, trained_betas=betas, eta=0.5, timestep_spacing="quadratic")
    scheduler.save_pretrained(tmp_path)
    again = EtaDDIMScheduler.from_pretrained(tmp_path)
    assert torch.equal(again.betas, scheduler.betas)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["trained_betas"] == betas.tolist()


@pytest.mark.parametrize("scheduler_class", [EulerDiscreteScheduler, PNDMScheduler])
def test_config_of_a_scheduler_that_never_clips_does_not_clip(scheduler_class, tmp_path):
    other = scheduler_class(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    other.save_pretrained(tmp_path)
    for config in (other.config, json.loads((tmp_path / "scheduler_config.json").read_text())):
        scheduler = EtaDDIMScheduler.from_config(config)
        assert scheduler.config.clip_sample is False
        assert scheduler.config.beta_schedule == "scaled_linear"
        assert EtaDDIMScheduler.from_config(config, clip_sample=True).config.clip_sample is True


@pytest.mark.parametrize("scheduler_class", [DDPMScheduler, DDIMScheduler])
def test_config_of_a_scheduler_that_clips_clips(scheduler_class):
    assert EtaDDIMScheduler.from_config(scheduler_class().config).config.clip_sample is True
    assert EtaDDIMScheduler.from_config(scheduler_class(clip_sample=False).config).config.clip_sample is False
    assert EtaDDIMScheduler.from_config({"_class_name": scheduler_class.__name__}).config.clip_sample is True


def test_config_without_betas_of_its_own_is_refused():
    with pytest.raises(ValueError, match="IPNDMScheduler"):
        EtaDDIMScheduler.from_config({"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000})


def test_config_of_flow_matching_is_refused_by_name(tmp_path):
    other = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="use EtaFlowMatchScheduler"):
        EtaDDIMScheduler.from_config(other.config)
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler"):
        EtaDDIMScheduler.from_pretrained(tmp_path)


def test_eta_and_use_clipped_model_output_of_the_config_are_the_default():
    x, output, z = randn(1, 3, 4, 4), randn(1, 3, 4, 4, seed=1), randn(1, 3, 4, 4, seed=2)
    plain = EtaDDIMScheduler()
    configured = EtaDDIMScheduler(eta=0.7, use_clipped_model_output=True)
    for scheduler in (plain, configured):
        scheduler.set_timesteps(10)
    expected = plain.step(output, 500, x, eta=0.7, use_clipped_model_output=True, variance_noise=z).prev_sample
    assert torch.equal(configured.step(output, 500, x, variance_noise=z).prev_sample, expected)
    assert not torch.equal(plain.step(output, 500, x, variance_noise=z).prev_sample, expected)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train_timesteps", 0),
        ("num_train_timesteps", -3),
        ("num_train_timesteps", 2.5),
        ("num_train_timesteps", True),
        ("num_train_timesteps", "1000"),
        ("num_train_timesteps", 10**12),
        ("beta_start", 0.0),
        ("beta_start", -0.1),
        ("beta_start", math.nan),
        ("beta_start", "0.1"),
        ("beta_end", 1.5),
        ("beta_end", math.inf),
        ("beta_schedule", "quadratic"),
        ("trained_betas", [[0.1] * 1000]),
        ("trained_betas", [math.nan] * 1000),
        ("trained_betas", [1.5] * 1000),
        ("trained_betas", [0.0] * 1000),
        ("trained_betas", "abc"),
        ("clip_sample", "false"),
        ("clip_sample", 1),
        ("set_alpha_to_one", "false"),
        ("steps_offset", -1),
        ("steps_offset", 0.5),
        ("prediction_type", "eps"),
        ("prediction_type", "flow_prediction"),
        ("thresholding", "yes"),
        ("dynamic_thresholding_ratio", 1.1),
        ("clip_sample_range", 0.0),
        ("clip_sample_range", math.nan),
        ("sample_max_value", 0.5),
        ("timestep_spacing", "uniform"),
        ("rescale_betas_zero_snr", 0),
        ("eta", 1.5),
        ("eta", -0.1),
        ("eta", math.nan),
        ("use_clipped_model_output", "no"),
        ("variance_type", "learned_sigma"),
        ("snr_shift_scale", 0.0),
        ("snr_shift_scale", "3"),
        ("num_train_timesteps", np.int64(0)),
        ("num_train_timesteps", np.float64(1000)),
        ("beta_end", np.float32(2.0)),
        ("clip_sample", np.int64(1)),
    ],
)
def test_bad_constructor_argument(name, value):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        EtaDDIMScheduler(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "num_inference_steps"),
        ({"num_inference_steps": 10, "timesteps": [5, 1]}, "timesteps"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": -3}, "num_inference_steps"),
        ({"num_inference_steps": 2.5}, "num_inference_steps"),
        ({"num_inference_steps": "10"}, "num_inference_steps"),
        ({"num_inference_steps": 1001}, "num_inference_steps"),
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [1, 5]}, "timesteps"),
        ({"timesteps": [5, 5]}, "timesteps"),
        ({"timesteps": [1000, 5]}, "timesteps"),
        ({"timesteps": [5, -1]}, "timesteps"),
        ({"timesteps": [5.5, 1.0]}, "timesteps"),
        ({"timesteps": "abc"}, "timesteps"),
        ({"timesteps": 7}, "timesteps"),
    ],
)
def test_bad_set_timesteps_argument_changes_nothing(arguments, name):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    before = dict(vars(scheduler))
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        scheduler.set_timesteps(**arguments)
    assert all(vars(scheduler)[key] is value for key, value in before.items())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"timestep": 1000}, "timestep"),
        ({"timestep": -1}, "timestep"),
        ({"timestep": 1.5}, "timestep"),
        ({"timestep": torch.tensor(1000)}, "timestep"),
        ({"timestep": torch.tensor([1, 2, 3])}, "timestep"),
        ({"timestep": torch.tensor([1, 1000])}, "timestep"),
        ({"timestep": torch.tensor([1.0, 2.0])}, "timestep"),
        ({"timestep": torch.tensor(True)}, "timestep"),
        ({"timestep": None}, "timestep"),
        ({"eta": torch.tensor(1j)}, "eta"),
        ({"eta": np.complex128(0.5 + 3j)}, "eta"),
        ({"generator": 5}, "generator"),
        ({"generator": [None, None]}, "generator"),
        ({"variance_noise": 1.0}, "variance_noise"),
        ({"variance_noise": torch.ones(2, 3, 4, 4, dtype=torch.complex64)}, "variance_noise"),
        ({"sample": [1.0]}, "sample"),
        ({"sample": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, "sample"),
        ({"model_output": torch.randn(2, 3, 4, 5)}, "model_output"),
        ({"model_output": torch.randn(2, 6, 4, 4)}, "model_output"),
        ({"eta": 1.5}, "eta"),
        ({"eta": -0.5}, "eta"),
        ({"eta": math.nan}, "eta"),
        ({"eta": "1"}, "eta"),
        ({"eta": torch.tensor([0.5, 1.5])}, "eta"),
        ({"eta": torch.tensor([0.5, 0.5, 0.5])}, "eta"),
        ({"use_clipped_model_output": "yes"}, "use_clipped_model_output"),
        ({"variance_noise": torch.randn(1, 3, 4, 4)}, "variance_noise"),
        ({"variance_noise": torch.randn(2, 3, 4, 4), "generator": torch.Generator()}, "generator"),
        ({"generator": [torch.Generator()] * 3, "eta": 0.5}, "generator"),
    ],
)
def test_bad_step_argument(arguments, name):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    good = {"model_output": torch.randn(2, 3, 4, 4), "timestep": 500, "sample": torch.randn(2, 3, 4, 4)}
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        scheduler.step(**{**good, **arguments})


def test_device_that_is_not_there_changes_nothing():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    before = dict(vars(scheduler))
    with pytest.raises(RuntimeError):
        scheduler.set_timesteps(20, device="nowhere")
    assert all(vars(scheduler)[key] is value for key, value in before.items())


def test_step_before_set_timesteps():
    with pytest.raises(ValueError, match="`set_timesteps`"):
        EtaDDIMScheduler().step(torch.randn(1, 1, 2, 2), 1, torch.randn(1, 1, 2, 2))


def test_zero_signal_with_epsilon_prediction_is_refused():
    scheduler = EtaDDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ValueError, match="`prediction_type` 'epsilon'"):
        scheduler.set_timesteps(10)
    scheduler = EtaDDIMScheduler(rescale_betas_zero_snr=True)  # leading starts at 900
    scheduler.set_timesteps(10)
    x = torch.randn(2, 1, 2, 2)
    for timestep in (999, torch.tensor([999]), torch.tensor([500, 999])):
        for eta in (0.5, torch.tensor([0.5])):
            with pytest.raises(ValueError, match="timestep 999"):
                scheduler.step(x, timestep, x, eta=eta)
    assert scheduler.add_noise(x, x, torch.tensor([999])).isfinite().all()


@pytest.mark.parametrize("config", ["DDIM", [], ["num_train_timesteps"], None, 3])
def test_config_that_is_no_dictionary(config):
    with pytest.raises(TypeError, match="`config`"):
        EtaDDIMScheduler.from_config(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"beta_end": NaN}', "`beta_end`"),
        ('{"beta_end": Infinity}', "`beta_end`"),
        ('{"clip_sample_range": -Infinity}', "`clip_sample_range`"),
        ('{"eta": NaN}', "`eta`"),
        ('{"clip_sample": "false"}', "`clip_sample`"),
        ('{"thresholding": 0}', "`thresholding`"),
        ('{"num_train_timesteps": "1000"}', "`num_train_timesteps`"),
        ('{"num_train_timesteps": 1000.0}', "`num_train_timesteps`"),
        ('{"num_train_timesteps": 1e30}', "`num_train_timesteps`"),
        ('{"num_train_timesteps": 99999999999}', "`num_train_timesteps`"),
        ('{"num_train_timesteps": null}', "`num_train_timesteps`"),
        ('{"beta_schedule": ["linear"]}', "`beta_schedule`"),
        ('{"prediction_type": {}}', "`prediction_type`"),
        ('{"trained_betas": {"0": 0.1}}', "`trained_betas`"),
        ('{"trained_betas": [0.1, null]}', "`trained_betas`"),
        ('{"trained_betas": []}', "`trained_betas`"),
        ('"some/other-repository"', "`config`"),
        ('["num_train_timesteps"]', "`config`"),
        ("3", "`config`"),
        ("null", "`config`"),
        ("{", "valid JSON"),
        ("", "valid JSON"),
    ],
)
def test_malformed_scheduler_config(text, message, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(text)
    with pytest.raises((ValueError, TypeError, OSError), match=message):
        EtaDDIMScheduler.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"noise": torch.randn(3, 1, 2, 2)}, "noise"),
        ({"noise": torch.randn(2, 1, 2, 3)}, "noise"),
        ({"timesteps": torch.tensor([1, 1000])}, "timesteps"),
        ({"timesteps": torch.tensor([1.0, 2.0])}, "timesteps"),
        ({"timesteps": torch.tensor([1, 2, 3])}, "timesteps"),
        ({"timesteps": None}, "timesteps"),
        ({"noise": None}, "noise"),
    ],
)
@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
def test_bad_add_noise_argument(method, arguments, name):
    x = torch.randn(2, 1, 2, 2)
    good = {"noise": x, "timesteps": torch.tensor([1, 2])}
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        getattr(EtaDDIMScheduler(), method)(x, **{**good, **arguments})
