"""The Gaussian of a step, the other variances, and the scheduler as a shared and copied object."""

import copy
import math
import pickle
import threading

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from ddim_scheduler import EtaDDIMScheduler

import exact

BARS = exact.alphas_cumprod()


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(num_inference_steps=10, **settings):
    scheduler = EtaDDIMScheduler(**settings)
    scheduler.set_timesteps(num_inference_steps)
    return scheduler


# ---------------------------------------------------------------------------------------------------------- transition


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("timestep", [900, 0, torch.tensor([900, 300, 0])])
def test_step_draws_from_transition(eta, timestep):
    scheduler = make()
    x, output, z = (randn(3, 2, 4, 4, seed=seed) for seed in range(3))
    mean, std, pred_original_sample = scheduler.transition(output, timestep, x, eta)
    result = scheduler.step(output, timestep, x, eta, variance_noise=z)
    assert torch.equal(pred_original_sample, result.pred_original_sample)
    assert (mean + std * z - result.prev_sample).abs().max() < 1e-6
    recovered = scheduler.noise_between(output, timestep, x, result.prev_sample, eta)
    expected = torch.where(std > 0, z, 0.0).expand_as(z)
    assert (recovered - expected).abs().max() < 1e-4


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_log_prob_equals_torch_distributions(reduction, eta):
    scheduler = make()
    x, output, prev_sample = (randn(3, 2, 4, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    mean, std, _ = scheduler.transition(output, torch.tensor([900, 500, 100]), x, eta)
    expected = torch.distributions.Normal(mean, std).log_prob(prev_sample).flatten(1)
    expected = expected.sum(1) if reduction == "sum" else expected.mean(1)
    result = scheduler.log_prob(prev_sample, mean, std, reduction)
    assert result.shape == (3,)
    assert ((result - expected) / expected).abs().max() < 1e-6


@pytest.mark.parametrize(("eta", "timestep"), [(0.0, 500), (1.0, 0), (1.0, torch.tensor([0, 0]))])
def test_log_prob_is_0_and_its_gradient_finite_without_noise(eta, timestep):
    scheduler = make()
    x, output = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1).requires_grad_()
    mean, std, _ = scheduler.transition(output, timestep, x, eta)
    assert (std == 0).all()
    log_prob = scheduler.log_prob(randn(2, 1, 4, 4, seed=2), mean, std)
    assert torch.equal(log_prob, torch.zeros(2))
    log_prob.sum().backward()
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize("settings", [{}, {"use_clipped_model_output": True}, {"prediction_type": "v_prediction"}])
@pytest.mark.parametrize("timestep", [500, torch.tensor([900, 300])])
def test_gradients(settings, timestep):
    scheduler = make(clip_sample_range=3.0, **settings)
    inputs = [randn(2, 1, 2, 2, seed=seed, dtype=torch.float64).requires_grad_() for seed in range(3)]

    def log_prob(output, x, prev_sample):
        mean, std, _ = scheduler.transition(output, timestep, x, 0.8)
        return scheduler.log_prob(prev_sample, mean, std)

    assert torch.autograd.gradcheck(log_prob, inputs)


def test_stored_trajectory_has_the_log_probabilities_of_the_rollout(unet):
    scheduler = make(20)
    x, generator, stored = randn(4, 1, 16, 16), torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = unet(x, t).sample
            prev_sample = scheduler.step(output, t, x, eta=1.0, generator=generator).prev_sample
            mean, std, _ = scheduler.transition(output, t, x, eta=1.0)
            stored.append((t, x, prev_sample, scheduler.log_prob(prev_sample, mean, std, "mean")))
            x = prev_sample
    for t, x, prev_sample, log_prob in stored:
        mean, std, _ = scheduler.transition(unet(x, t).sample, t, x, eta=1.0)
        assert (scheduler.log_prob(prev_sample, mean, std, "mean") - log_prob).abs().max() < 1e-6
    assert torch.equal(stored[-1][3], torch.zeros(4))


def test_noise_record_gives_the_trajectory_back():
    """From any chain x_T, ..., x_0: the z of its steps, replayed, lead through the same chain."""
    scheduler = make(clip_sample=False)
    chain = [randn(2, 1, 4, 4, seed=seed, dtype=torch.float64) for seed in range(10)]
    outputs = [randn(2, 1, 4, 4, seed=100 + seed, dtype=torch.float64) for seed in range(9)]
    record = [
        scheduler.noise_between(outputs[i], t, chain[i], chain[i + 1], eta=1.0)
        for i, t in enumerate(scheduler.timesteps[:-1])
    ]
    x = chain[0]
    for i, t in enumerate(scheduler.timesteps[:-1]):
        x = scheduler.step(outputs[i], t, x, eta=1.0, variance_noise=record[i]).prev_sample
        assert (x - chain[i + 1]).abs().max() < 1e-12


# ---------------------------------------------------------------------------------------------------- other variances


@pytest.mark.parametrize("t", [900, 100, 0])
def test_sigma_hat(t):
    """Section 5.1 and the official code: fresh noise of std sqrt(1 - abar_t / abar_s), the direction of eta = 1."""
    scheduler = make(variance_type="sigma_hat", clip_sample=False)
    x, epsilon, z = (randn(2, 1, 4, 4, seed=seed, dtype=torch.float64) for seed in range(3))
    bar_t, bar_s = BARS[t].item(), BARS[t - 100].item() if t else 1.0
    expected = exact.ddim_step(x, epsilon, bar_t, bar_s, eta=1.0) + math.sqrt(1 - bar_t / bar_s) * z
    result = scheduler.step(epsilon, t, x, eta=1.0, variance_noise=z).prev_sample
    assert (result - expected).abs().max() < 1e-11


@pytest.mark.parametrize("timestep", [900, torch.tensor([900, 200])])
def test_learned_range_equals_ddpm_scheduler(timestep):
    """At eta = 1 it is ancestral sampling with the variance of https://arxiv.org/abs/2102.09672, eq. (15)."""
    settings = {"variance_type": "learned_range", "clip_sample": False}
    ours, theirs = EtaDDIMScheduler(**settings), DDPMScheduler(**settings)
    ours.set_timesteps(10)
    theirs.set_timesteps(10)
    x, output = randn(2, 3, 4, 4), randn(2, 6, 4, 4, seed=1)
    output[:, 3:] = output[:, 3:].clamp(-1, 1)
    mean, std, _ = ours.transition(output, timestep, x, eta=1.0)
    for k in range(2):
        t = timestep if isinstance(timestep, int) else int(timestep[k])
        expected = theirs._get_variance(t, predicted_variance=output[k, 3:])
        assert (std[k] - torch.exp(expected / 2)).abs().max() < 1e-5
        assert theirs.previous_timestep(t) == ours.previous_timestep(t)
    plain = make(clip_sample=False)
    assert torch.equal(mean, plain.transition(output[:, :3], timestep, x, eta=1.0).mean)
    assert (ours.transition(output, timestep, x, eta=0.0).std == 0).all()


@pytest.mark.parametrize("variance_type", ["learned", "learned_range", "sigma_hat"])
def test_batched_other_variances_equal_single_steps_bit_for_bit(variance_type):
    scheduler = make(variance_type=variance_type)
    x, z, output = randn(3, 2, 5, 7), randn(3, 2, 5, 7, seed=1), randn(3, 4, 5, 7, seed=2)
    output = output if variance_type != "sigma_hat" else output[:, :2]
    timesteps, etas = torch.tensor([900, 300, 0]), torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64)
    batch = scheduler.step(output, timesteps, x, eta=etas, variance_noise=z).prev_sample
    for k in range(3):
        one = slice(k, k + 1)
        single = scheduler.step(output[one], int(timesteps[k]), x[one], eta=etas[k].item(), variance_noise=z[one])
        assert torch.equal(batch[one], single.prev_sample)


def test_learned_variance_is_a_log_variance():
    scheduler = make(variance_type="learned", clip_sample=False)
    x, output = randn(2, 3, 4, 4), randn(2, 6, 4, 4, seed=1)
    std = scheduler.transition(output, 500, x, eta=0.5).std
    assert (std - 0.5 * torch.exp(output[:, 3:] / 2)).abs().max() < 1e-6
    assert (scheduler.transition(output, 0, x, eta=1.0).std == 0).all()
    with pytest.raises(ValueError, match="`model_output`"):
        scheduler.step(x, 500, x)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
def test_fixed_variances_of_ddpm_configs_go_there_and_back(name):
    other = DDPMScheduler(variance_type=name)
    ours = EtaDDIMScheduler.from_config(other.config)
    ours.set_timesteps(10)
    x, z = randn(1, 1, 2, 2), randn(1, 1, 2, 2, seed=1)
    assert torch.equal(
        ours.step(x, 500, x, eta=1.0, variance_noise=z).prev_sample,
        make().step(x, 500, x, eta=1.0, variance_noise=z).prev_sample,
    )
    assert DDPMScheduler.from_config(ours.config).config.variance_type == name


def test_thresholding_interpolates_the_quantile_as_diffusers():
    settings = {"thresholding": True, "sample_max_value": 100.0, "dynamic_thresholding_ratio": 0.3}
    ours, theirs = EtaDDIMScheduler(**settings), DDIMScheduler(**settings)
    x = 5 * randn(4, 1, 2, 3)
    assert (ours._threshold_sample(x) - theirs._threshold_sample(x)).abs().max() < 1e-6


def test_thresholding_of_more_elements_than_torch_quantile_takes():
    scheduler = make(thresholding=True, sample_max_value=10.0, dynamic_thresholding_ratio=0.5)
    x = torch.linspace(-4, 4, 2**24 + 8).view(1, 1, -1)
    result = scheduler._threshold_sample(x)
    assert result.abs().max() == 1
    assert (result - (x / 2).clamp(-1, 1)).abs().max() < 1e-5


# ------------------------------------------------------------------------------------------- a shared, copied scheduler


def test_threads_that_share_a_scheduler_get_the_sequential_results():
    scheduler = make(50)
    starts, outputs = randn(8, 1, 3, 16, 16), randn(50, 1, 3, 16, 16, seed=1)

    def loop(k):
        x = starts[k]
        for t, output in zip(scheduler.timesteps, outputs, strict=True):
            x = scheduler.step(output, t, x, eta=1.0, variance_noise=output).prev_sample
        return x

    expected, results = [loop(k) for k in range(8)], [None] * 8

    def work(k):
        for _ in range(5):
            results[k] = loop(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_work_alone(copier):
    scheduler = make(20, timestep_spacing="trailing", eta=0.5)
    x, z = randn(1, 1, 4, 4), randn(1, 1, 4, 4, seed=1)
    expected = scheduler.step(x, 499, x, variance_noise=z).prev_sample
    copied = copier(scheduler)
    scheduler.set_timesteps(3)
    assert torch.equal(copied.step(x, 499, x, variance_noise=z).prev_sample, expected)
    assert len(copied.timesteps) == 20


def test_swapped_dict_works():
    scheduler, other = make(20), EtaDDIMScheduler(beta_schedule="scaled_linear")
    x = randn(1, 1, 4, 4)
    expected = scheduler.step(x, 500, x).prev_sample
    other.__dict__ = copy.deepcopy(scheduler.__dict__)
    assert torch.equal(other.step(x, 500, x).prev_sample, expected)


def test_config_is_read_when_a_method_is_called():
    """Pipelines change the config after construction (steps_offset, clip_sample), trainers the prediction type."""
    scheduler = EtaDDIMScheduler()
    scheduler.register_to_config(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[-1] == 1
    expected = EtaDDIMScheduler(steps_offset=1, clip_sample=False, prediction_type="v_prediction")
    expected.set_timesteps(10)
    x, output = randn(1, 1, 4, 4), randn(1, 1, 4, 4, seed=1)
    assert torch.equal(scheduler.step(output, 901, x).prev_sample, expected.step(output, 901, x).prev_sample)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_arguments_of_the_gaussian():
    scheduler = make()
    x = randn(2, 1, 4, 4)
    mean, std, _ = scheduler.transition(x, 500, x, eta=1.0)
    with pytest.raises(ValueError, match="`prev_sample`"):
        scheduler.log_prob(x[:1], mean, std)
    with pytest.raises(ValueError, match="`prev_sample`"):
        scheduler.noise_between(x, 500, x, x[:1], eta=1.0)
    with pytest.raises(ValueError, match="`reduction`"):
        scheduler.log_prob(x, mean, std, reduction="max")
    with pytest.raises(TypeError, match="`sample`"):
        scheduler.transition(x, 500, None)
    with pytest.raises(TypeError, match="`prev_sample`"):
        scheduler.noise_between(x, 500, x, x.tolist(), eta=1.0)
    with pytest.raises(ValueError, match="`std`"):
        scheduler.log_prob(x, mean, torch.ones(4, 1, 1, 1))
