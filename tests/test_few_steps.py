"""Laws of steps with a history, of fitted tables, and of the fit."""

import copy
import json
import math
import pickle
import re
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from ddim_scheduler import (
    EtaDDIMInverseScheduler,
    EtaDDIMPipeline,
    EtaDDIMScheduler,
    EtaFlowMatchInverseScheduler,
    EtaFlowMatchScheduler,
)
from ddim_scheduler.fitting import TrajectoryRecorder, WeightFitter, fit_sampler, fit_timesteps, main, student_of
from ddim_scheduler.model_cards import pipeline_card
from ddim_scheduler.multistep import FORMULA_WEIGHTS
from ddim_scheduler.pipelines.images import image_generators

import fresh
from exact import SMALL_UNET, gaussian, gaussian_flow, gaussian_mixture, model_output
from training import train

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import flow_sweep
import tiny_flow_pipelines

import tiny_pipelines

COSINE = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False}
LINEAR = {"clip_sample": False}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(scheduler):
    """alpha-bar of the timesteps, float64, by the definition."""
    return np.append(np.exp(scheduler._log_alphas_cumprod), 1.0)


def loop(scheduler, denoise, x, eta=0.0, steps=None):
    """Runs the grid that is set, with an exact denoiser."""
    bars, generator = levels(scheduler), torch.Generator().manual_seed(1)
    for t in scheduler.timesteps[:steps].tolist():
        output = model_output(scheduler.config.prediction_type, denoise(x, bars[t]), x, bars[t])
        x = scheduler.step(output, t, x, eta=eta, generator=generator).prev_sample
    return x


def digits_like():
    return gaussian_mixture(randn(20, 6, seed=3), 0.2)


# --------------------------------------------------------------------------------------------------- formula weights


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("settings", [LINEAR, COSINE])
def test_order_of_convergence_on_gaussian_data(settings, order, record_property):
    """The error of a whole loop, on a grid that is even in angle: of order 3 the start, by DDIM, has order 2."""
    betas = np.linspace(1e-4, 0.02, 20_000) / 20 if settings is LINEAR else None
    scheduler = EtaDDIMScheduler(20_000, trained_betas=betas, **settings, timestep_spacing="angle", solver_order=order)
    x_T, counts, errors = randn(64), (80, 160, 320), []
    exact = gaussian_flow(x_T, levels(scheduler)[-2], 0.3, 0.5)
    for N in counts:
        scheduler.set_timesteps(N)
        errors.append((loop(scheduler, gaussian(0.3, 0.5), x_T) - exact).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    record_property("slope", float(slope))
    assert slope > (0.97, 1.6, 1.6)[order - 1], errors


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_one_step_from_an_exact_past(order, record_property):
    """Its error is of order + 1, where the levels are even in alpha / sigma."""
    errors, counts, x_T = [], (20, 40, 80, 160), randn(64)
    for n in counts:  # steps from rho = 3 to 1, of which the last three are done
        rho = np.linspace(3, 1, n + 1)[:4]
        bars = rho**2 / (1 + rho**2)
        betas = 1 - bars / np.append(1, bars[:-1])
        scheduler = EtaDDIMScheduler(trained_betas=betas, clip_sample=False, set_alpha_to_one=False, solver_order=order)
        scheduler.set_timesteps(4)

        def exact(t):
            scale = torch.tensor((0.25 * rho[t] ** 2 + 1) / (1 + rho[t] ** 2)).sqrt()  # noqa: B023 (called at once)
            return math.sqrt(bars[t]) * 0.3 + scale * x_T  # noqa: B023

        for t in (3, 2, 1):
            x = exact(t)
            output = model_output("epsilon", gaussian(0.3, 0.5)(x, bars[t]), x, bars[t])
            end = scheduler.step(output, t, x).prev_sample
        errors.append((end - exact(0)).abs().max().item())
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    record_property("slope", float(slope))
    assert abs(slope - order - 1) < 0.15, errors


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_weights_are_exact_for_a_polynomial(order, eta):
    """
    On a grid that is even in rho = alpha / sigma a step is the integral of x_0 over rho, where that is a polynomial of
    degree order - 1; for eta > 0 it is that of the same polynomial extrapolated, in the place of x_0.
    """
    rho = np.linspace(20, 0.5, 40)  # of timesteps 0..39
    bars = rho**2 / (1 + rho**2)
    betas = 1 - bars / np.append(1, bars[:-1])
    scheduler = EtaDDIMScheduler(
        trained_betas=betas, prediction_type="sample", clip_sample=False, set_alpha_to_one=False, solver_order=order
    )
    scheduler.set_timesteps(timesteps=range(39, 3, -4))
    coefficients = [randn(3, seed=k) for k in range(order)]

    def x_0(rho):
        return sum(c * rho**k for k, c in enumerate(coefficients))

    def integral(rho):
        return sum(c * rho ** (k + 1) / (k + 1) for k, c in enumerate(coefficients))

    x, grid = randn(3, seed=9), scheduler.timesteps.tolist()
    for i, (t, s) in enumerate(zip(grid, [*grid[1:], 0], strict=True)):
        if i >= order - 1 and s > 0:
            first = EtaDDIMScheduler.from_config(scheduler.config, solver_order=1)
            first.set_timesteps(timesteps=grid)
            mean = integral(rho[s]) - integral(rho[t])
            of_first = first.transition(mean / (rho[s] - rho[t]), t, x, eta=eta).mean
            torch.testing.assert_close(
                scheduler.transition(x_0(rho[t]), t, x, eta=eta).mean, of_first, rtol=1e-9, atol=1e-9
            )
        x = scheduler.step(x_0(rho[t]), t, x, eta=eta, variance_noise=randn(3, seed=i)).prev_sample


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "quadratic", "angle"])
def test_stable_for_every_eta(spacing, eta, order):
    """Samples of a standard normal stay near one, whatever noise they are given: no history blows up."""
    scheduler = EtaDDIMScheduler(timestep_spacing=spacing, solver_order=order, **COSINE)
    for N in (1, 2, 3, 5, 10, 50):
        scheduler.set_timesteps(N)
        x = loop(scheduler, gaussian(0.0, 1.0), randn(2000), eta)
        assert x.std() < 1.6, (N, x.std())
        if N >= 10 and spacing in ("trailing", "angle"):
            assert abs(x.std() - 1) < 0.1, (N, x.std())


def test_clipped_predictions_and_zero_terminal_snr():
    for settings in ({**COSINE, "clip_sample": True}, {**COSINE, "thresholding": True}):
        scheduler = EtaDDIMScheduler(solver_order=3, **settings)
        scheduler.set_timesteps(10)
        assert loop(scheduler, gaussian(0.0, 0.5), randn(2, 1, 4, 4)).abs().max() <= 2
    scheduler = EtaDDIMScheduler(
        solver_order=3, rescale_betas_zero_snr=True, timestep_spacing="angle", prediction_type="v_prediction", **LINEAR
    )
    scheduler.set_timesteps(40)
    assert scheduler.timesteps[0] == 999
    x_T = randn(64)
    torch.testing.assert_close(loop(scheduler, gaussian(0.3, 0.5), x_T), 0.3 + 0.5 * x_T, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_history_is_float32_and_its_own(dtype):
    """A changed return value changes no later step, and half precision is rounded at the edge alone."""
    wide, narrow = (EtaDDIMScheduler(solver_order=3, **COSINE) for _ in range(2))
    x = randn(2, 3).float()
    for scheduler in (wide, narrow):
        scheduler.set_timesteps(4)
    for t in wide.timesteps:
        x, m = x.to(dtype), randn(2, 3, seed=int(t)).to(dtype)
        exact = wide.step(m.float(), t, x.float()).prev_sample
        output = narrow.step(m, t, x)
        assert torch.equal(output.prev_sample, exact.to(dtype))
        output.pred_original_sample.fill_(7)
        x = exact


def test_the_angle_grid_is_even_in_angle():
    scheduler = EtaDDIMScheduler(timestep_spacing="angle")
    angles = np.arccos(np.sqrt(levels(scheduler)))
    for N in range(1, 1001):
        scheduler.set_timesteps(N)
        grid = scheduler.timesteps.numpy()
        assert len(grid) == N
        assert (grid[0], grid[-1] >= 0, (np.diff(grid) < 0).all()) == (999, True, True)
        if N <= 20:
            assert abs(angles[grid] - angles[999] * np.arange(N, 0, -1) / N).max() < 0.006


# -------------------------------------------------------------------------------------------------- one loop, in order


def test_calls_that_belong_to_no_loop_are_refused():
    scheduler = EtaDDIMScheduler(solver_order=2, **LINEAR)
    with pytest.raises(ValueError, match="set_timesteps"):
        scheduler.step(randn(2, 3), 900, randn(2, 3))
    scheduler.set_timesteps(10)
    x = randn(2, 3)
    with pytest.raises(ValueError, match="out of order"):
        scheduler.step(x, 800, x)
    scheduler.step(x, 900, x)
    for t in (900, 700, 801, 0):  # again, too far, not of the grid
        with pytest.raises(ValueError, match=f"`timestep` {t} is out of order.*800"):
            scheduler.step(x, t, x)
        with pytest.raises(ValueError, match="out of order"):
            scheduler.transition(x, t, x)
    with pytest.raises(ValueError, match=r"`sample` has shape \(3, 3\)"):
        scheduler.step(randn(3, 3), 800, randn(3, 3))
    with pytest.raises(ValueError, match="`timestep` must be one of the grid"):
        scheduler.step(x, torch.tensor([800, 700]), x)
    before = scheduler.transition(x, 800, x).mean  # asks, and goes no step
    assert torch.equal(before, scheduler.step(x, 800, x).prev_sample)
    scheduler.set_timesteps(10)
    scheduler.step(x, 900, x)
    scheduler.set_timesteps(10)
    scheduler.set_begin_index(4)
    assert torch.equal(scheduler.step(x, 500, x).prev_sample, first_order(10, 500, x))  # no history yet


def first_order(N, t, x):
    scheduler = EtaDDIMScheduler(**LINEAR)
    scheduler.set_timesteps(N)
    return scheduler.step(x, t, x).prev_sample


def test_two_loops_after_each_other_are_equal():
    scheduler = EtaDDIMScheduler(solver_order=3, **COSINE)
    scheduler.set_timesteps(6)
    x = randn(4, 6)
    assert torch.equal(loop(scheduler, digits_like(), x), loop(scheduler, digits_like(), x))
    assert not scheduler._history.predictions  # nothing is kept when a loop is over


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_a_copy_goes_on_in_the_middle_of_a_loop(copied):
    scheduler, denoise, bars = EtaDDIMScheduler(solver_order=3, **LINEAR), digits_like(), None
    scheduler.set_timesteps(8)
    x, bars = loop(scheduler, denoise, randn(4, 6), steps=4), levels(scheduler)
    other, ends = copied(scheduler), []
    for one in (scheduler, other):
        y = x
        for t in one.timesteps[4:].tolist():
            y = one.step(model_output("epsilon", denoise(y, bars[t]), y, bars[t]), t, y).prev_sample
        ends.append(y)
    assert torch.equal(*ends)


def test_order_one_keeps_nothing():
    scheduler = EtaDDIMScheduler(**LINEAR)
    scheduler.set_timesteps(10)
    before = dict(vars(scheduler))
    scheduler.step(randn(2, 3), 300, randn(2, 3))
    assert all(vars(scheduler)[name] is value for name, value in before.items())
    assert (scheduler._history.predictions, scheduler._history.next) == ((), 0)


def test_timesteps_of_an_accelerator_are_counted():
    """The device "meta" stands in for one: a value there cannot be read."""
    scheduler = EtaDDIMScheduler(solver_order=2, **LINEAR)
    scheduler.set_timesteps(5, device="meta")
    sample = torch.empty(2, 3, device="meta")
    for _ in range(2):
        for i, t in enumerate(scheduler.timesteps):
            assert scheduler._history.next == i
            sample = scheduler.step(sample, t, sample).prev_sample


@pytest.mark.parametrize("is_fitted", [False, True])
def test_compiled_steps_with_a_history_are_the_same(is_fitted):
    """Four graphs for each number of steps, not one for each step, whose fitted weights are its own."""
    scheduler, x = EtaDDIMScheduler(solver_order=3, timestep_spacing="angle", **LINEAR), randn(2, 3).float()
    if is_fitted:
        scheduler, tables = EtaDDIMScheduler(**LINEAR, timestep_spacing="fitted"), {}
        for N in (10, 20):
            grid = [*range(999, -1, -1000 // N)][:N]
            sigmas = [math.sqrt(1 - levels(scheduler)[t]) for t in (*grid, -1)]
            weights = [[-0.05 * (i + k) for k in range(min(i, 2))] for i in range(N)]
            tables[str(N)] = {"prediction_type": "epsilon", "timesteps": grid, "sigmas": sigmas, "weights": weights}
        scheduler.register_to_config(fitted_tables=tables)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, ends = torch.compile(scheduler.step, fullgraph=True, backend="eager"), {}
    for step in (compiled, scheduler.step):
        for N in (10, 20):
            scheduler.set_timesteps(N)
            y = x
            for t in scheduler.timesteps:
                y = step(torch.sin(y), t, y, return_dict=False)[0]
            ends.setdefault(N, []).append(y)
    assert all(torch.equal(*pair) for pair in ends.values())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4 * 2


def test_orders_of_other_schedulers_are_not_taken(tmp_path):
    theirs = DPMSolverMultistepScheduler(solver_order=3)
    theirs.save_pretrained(tmp_path)
    for config in (theirs.config, DPMSolverMultistepScheduler.load_config(tmp_path)):
        assert EtaDDIMScheduler.from_config(config).config.solver_order == 1
    EtaDDIMScheduler().save_pretrained(tmp_path / "ours")
    for config in (EtaDDIMScheduler().config, EtaDDIMScheduler.load_config(tmp_path / "ours")):
        assert DPMSolverMultistepScheduler.from_config(config).config.solver_order == 2  # nor do they take ours
    ours = EtaDDIMScheduler(solver_order=2)
    ours.save_pretrained(tmp_path / "ours")
    assert EtaDDIMScheduler.from_pretrained(tmp_path / "ours").config.solver_order == 2
    assert EtaDDIMScheduler.from_config(ours.config).config.solver_order == 2
    assert EtaDDIMScheduler.from_config({"beta_start": 1e-4, "solver_order": 3}).config.solver_order == 3
    inverse = EtaDDIMInverseScheduler.from_config(ours.config)  # which has no history
    inverse.set_timesteps(5)
    inverse.step(randn(2, 3), 400, randn(2, 3))


@pytest.mark.parametrize("value", [0, 4, 1.5, True, None, "2"])
def test_bad_solver_order(value):
    with pytest.raises((ValueError, TypeError), match=f"`solver_order` .*{value}"):
        EtaDDIMScheduler(solver_order=value)


# ------------------------------------------------------------------------------------------------------------- tables


def table(N=3, **changes):
    scheduler = EtaDDIMScheduler(**COSINE)
    grid = [900, 500, 100][:N]
    sigmas = [math.sqrt(1 - levels(scheduler)[t]) for t in (*grid, -1)]
    weights = [[], [-0.5], [-1.2, 0.3]][:N]
    return {"prediction_type": "v_prediction", "timesteps": grid, "sigmas": sigmas, "weights": weights} | changes


def test_table_goes_through_json_and_is_used(tmp_path):
    scheduler = EtaDDIMScheduler(**COSINE, timestep_spacing="fitted", fitted_tables={"3": table()})
    scheduler.save_pretrained(tmp_path)
    loaded = EtaDDIMScheduler.from_pretrained(tmp_path)
    assert loaded.config.fitted_tables == scheduler.config.fitted_tables == {"3": table()}
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["fitted_tables"] == {"3": table()}
    for one in (scheduler, loaded, EtaDDIMScheduler.from_config(loaded.config)):
        one.set_timesteps(3)
        assert one.timesteps.tolist() == [900, 500, 100]
    x, outputs = randn(2, 3), [randn(2, 3, seed=k) for k in range(3)]
    predictions = []
    for t, output, weights in zip(loaded.timesteps, outputs, table()["weights"], strict=True):
        plain = EtaDDIMScheduler(**COSINE)
        plain.set_timesteps(timesteps=[900, 500, 100])
        expected, x_0 = plain.step(output, t, x, return_dict=False)
        alpha_t, alpha_s = (math.sqrt(levels(plain)[k]) for k in (int(t), plain.previous_timestep(t)))
        sigma_t, sigma_s = math.sqrt(1 - alpha_t**2), math.sqrt(1 - alpha_s**2)
        gain = alpha_s - sigma_s * alpha_t / sigma_t
        expected = expected + sum(gain * w * (p - x_0) for w, p in zip(weights, predictions, strict=False))
        x = loaded.step(output, t, x).prev_sample
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
        predictions = [x_0, *predictions]
    scheduler.set_timesteps(timesteps=[900, 500, 100])  # given ones are not fitted ones
    assert not scheduler._is_multistep
    DDIMScheduler.from_config(loaded.config)  # diffusers' own reads the rest


def test_numbers_of_steps_that_are_not_fitted_are_refused_by_name():
    scheduler = EtaDDIMScheduler(**COSINE, timestep_spacing="fitted", fitted_tables={"3": table(), "2": table(2)})
    scheduler.set_timesteps(3)
    with pytest.raises(ValueError, match="`num_inference_steps` 4, but for 2, 3"):
        scheduler.set_timesteps(4)
    assert scheduler.num_inference_steps == 3
    with pytest.raises(ValueError, match="fit_sampler"):
        EtaDDIMScheduler(timestep_spacing="fitted").set_timesteps(3)


def test_tables_of_another_model_are_refused():
    tables = {"3": table()}
    with pytest.raises(ValueError, match=r"fitted_tables\['3'\].*another noise schedule"):
        EtaDDIMScheduler(prediction_type="v_prediction", fitted_tables=tables)
    with pytest.raises(ValueError, match="`prediction_type` 'v_prediction', and this is 'epsilon'"):
        EtaDDIMScheduler(beta_schedule="squaredcos_cap_v2", fitted_tables=tables)
    scheduler = EtaDDIMScheduler(**COSINE, fitted_tables=tables)
    with pytest.raises(ValueError, match="`prediction_type` 'v_prediction', and this is 'sample'"):
        scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ValueError, match="another noise schedule"):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    with pytest.raises(ValueError, match="another noise schedule"):
        scheduler.register_to_config(beta_schedule="linear")
    scheduler.register_to_config(beta_schedule="linear", fitted_tables=None)


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([], "must be a dictionary"),
        ({"3": None}, "must have the keys"),
        ({"3": {"timesteps": [1]}}, "must have the keys"),
        ({"4": table()}, "must hold 4 timesteps"),
        ({"3": table(sigmas=[1.0])}, "one more sigma"),
        ({"3": table(weights=[[0.1], [], []])}, "at most 0 weights at step 0"),
        ({"3": table(weights=[[], [], [0.1, 0.1, 0.1]])}, "at most 2 weights at step 2"),
        ({"3": table(weights=[[], ["a"], []])}, r"\['weights'\]` must hold Python's numbers, but holds 'a'"),
        ({"3": table(weights=[[], [math.nan], []])}, "must be finite"),
        ({"3": table(weights=[[], None, []])}, r"\['weights'\]` must be made of lists, but is None"),
        ({"3": table(weights=None)}, r"\['weights'\]` must be made of lists, but is None"),
        ({"3": table(timesteps="abc")}, r"\['timesteps'\]` must be made of lists, but is 'abc'"),
        (
            {"3": table(timesteps=[*np.array([900, 500, 100])])},
            f"must hold Python's numbers, but holds {re.escape(repr(np.int64(900)))}",
        ),
        ({"3": table(sigmas=[[1.0]] * 4)}, r"must hold Python's numbers, but holds \[1.0\]"),
        ({"3": table(sigmas=[math.nan] * 4)}, "must be finite"),
        ({"0": table(0, sigmas=[0.0])}, "must hold 0 timesteps"),
        ({3: table()}, "as strings, as in JSON, for keys, but has 3"),
        ({"3": table(timesteps=[1000, 500, 100])}, "must be in 0..999"),
        ({"3": table(timesteps=[100, 500, 900])}, "another noise schedule"),
    ],
)
def test_malformed_tables(tables, message):
    with pytest.raises((ValueError, TypeError), match=message):
        EtaDDIMScheduler(**COSINE, fitted_tables=tables)


# ---------------------------------------------------------------------------------------------------------------- fit


def fit(scheduler, denoise, x_T, teacher_steps, N, ridge=1e-3):
    """The two parts in a loop of one's own."""
    scheduler.set_timesteps(teacher_steps)
    with TrajectoryRecorder(scheduler) as teacher:
        end = loop(scheduler, denoise, x_T)
    student = student_of(scheduler, teacher, fit_timesteps(teacher, N))
    student.set_timesteps(N)
    with WeightFitter(student, teacher, ridge) as fitter:
        loop(student, denoise, x_T)
    return teacher, fitter, end


def test_fit_finds_the_weights_of_a_linear_teacher():
    """A teacher of N steps has one grid of N steps, and the formula's weights go along its trajectory."""
    scheduler = EtaDDIMScheduler(solver_order=3, timestep_spacing="angle", **COSINE)
    teacher, fitter, end = fit(scheduler, digits_like(), randn(16, 6), 7, 7, ridge=1e-9)
    assert fitter.table["timesteps"] == teacher.timesteps == scheduler.timesteps.tolist()
    for i, weights in enumerate(fitter.table["weights"]):
        np.testing.assert_allclose(weights, FORMULA_WEIGHTS[min(i, 2)], atol=1e-4)
    assert fitter.error < 1e-5
    scheduler = EtaDDIMScheduler.from_config(
        scheduler.config, timestep_spacing="fitted", fitted_tables={"7": fitter.table}
    )
    scheduler.set_timesteps(7)
    torch.testing.assert_close(loop(scheduler, digits_like(), randn(16, 6)), end, rtol=0, atol=1e-4)


def test_fitted_timesteps_are_the_shortest_path():
    scheduler, denoise = EtaDDIMScheduler(solver_order=3, timestep_spacing="angle", **LINEAR), digits_like()
    teacher, _, _ = fit(scheduler, denoise, randn(4, 6), 8, 3)
    a, s = np.array(teacher.alphas), np.array(teacher.sigmas)

    def length(places):
        total = (teacher.samples[0] - teacher.samples[places[0]]).square().mean().sqrt()
        for i, j in zip(places, [*places[1:], 8], strict=True):
            epsilon = (teacher.samples[i] - a[i] * teacher.predictions[i]) / s[i]
            total += (a[j] * teacher.predictions[i] + s[j] * epsilon - teacher.samples[j]).square().mean().sqrt()
        return total

    for N in (1, 2, 3, 5):
        assert tuple(fit_timesteps(teacher, N)) == min(combinations(range(8), N), key=length)
    with pytest.raises(ValueError, match=r"`num_inference_steps` must be in 1\.\.8, but is 9"):
        fit_timesteps(teacher, 9)


@pytest.mark.parametrize("settings", [LINEAR, COSINE, {**COSINE, "rescale_betas_zero_snr": True}])
def test_fitted_is_never_worse_than_order_one(settings):
    """On noise that was not fitted to, against order 1 on every spacing; a thousandth of the std counts as equal."""
    denoise, noise = digits_like(), randn(64, 6, seed=5)
    reference = EtaDDIMScheduler(**settings, solver_order=3, timestep_spacing="angle")
    reference.set_timesteps(300)
    end = loop(reference, denoise, noise)
    teacher = EtaDDIMScheduler(**settings, solver_order=3, timestep_spacing="angle")
    for N in (3, 8, 20, 50):
        fits = [fit(teacher, denoise, randn(32, 6), 80, N, ridge)[1] for ridge in (1e-3, 1e-1)]
        tables = {str(N): min(fits, key=lambda fit: fit.error).table}
        fitted = EtaDDIMScheduler(**settings, fitted_tables=tables, timestep_spacing="fitted")
        errors = []
        for scheduler in [fitted, *(EtaDDIMScheduler(**settings, timestep_spacing=s) for s in ("leading", "angle"))]:
            scheduler.set_timesteps(N)
            errors.append((loop(scheduler, denoise, noise) - end).square().mean().sqrt().item())
        assert errors[0] <= min(errors[1:]) + 1e-3, (N, errors)


def test_recorder_thins_and_refuses():
    scheduler = EtaDDIMScheduler(**LINEAR)
    scheduler.set_timesteps(3)
    x = randn(2, 3)
    with TrajectoryRecorder(scheduler, max_elements=4) as recorder:
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample
    assert [len(sample) for sample in recorder.samples] == [4] * 4
    assert set(recorder.samples[-1].tolist()) <= set(x.flatten().tolist())
    assert "step" not in vars(scheduler)
    with TrajectoryRecorder(scheduler) as recorder:
        with pytest.raises(ValueError, match="`eta` must be 0"):
            scheduler.step(x, 666, x, eta=0.5)
        scheduler.step(x, 333, x)
        with pytest.raises(ValueError, match="takes one loop"):
            scheduler.step(x, 666, x)
    with pytest.raises(ValueError, match="`max_elements` must be at least 1"):
        TrajectoryRecorder(scheduler, max_elements=0)


# ---------------------------------------------------------------------------------------------------------- pipelines


def small_pipeline(**settings):
    torch.manual_seed(0)
    return EtaDDIMPipeline(UNet2DModel(**SMALL_UNET), EtaDDIMScheduler(**{**COSINE, **settings})).to("cpu")


def test_fit_sampler_of_a_pipeline(tmp_path, capsys):
    pipe = small_pipeline(clip_sample=True)
    before = pipe.scheduler
    fitted = fit_sampler(pipe, [4, 2], teacher_steps=12, seeds=3)
    assert pipe.scheduler is before
    assert before.config.fitted_tables is None
    assert [*fitted.config.fitted_tables] == ["2", "4"]
    assert (fitted.config.timestep_spacing, fitted.config.clip_sample) == ("fitted", False)
    printed = capsys.readouterr().out
    assert "MB" in printed
    assert "    4 " in printed
    more = fit_sampler(pipe, [3], teacher_steps=6, seeds=2)
    pipe.scheduler = fitted
    assert [*fit_sampler(pipe, [3], teacher_steps=6, seeds=2).config.fitted_tables] == ["2", "4", "3"]
    assert more.config.fitted_tables["3"]["timesteps"]
    pipe.save_pretrained(tmp_path)
    loaded = EtaDDIMPipeline.from_pretrained(tmp_path)
    images = [p(batch_size=2, num_inference_steps=4, seed=0, output_type="np").images for p in (pipe, loaded)]
    assert np.array_equal(*images)
    with pytest.raises(ValueError, match="but for 2, 4"):
        loaded(batch_size=2, num_inference_steps=50)
    main([str(tmp_path), "--steps", "3", "--teacher_steps", "6", "--seeds", "2", "--device", "cpu"])
    assert {*EtaDDIMPipeline.from_pretrained(tmp_path).scheduler.config.fitted_tables} == {"2", "3", "4"}


def test_fitted_model_without_the_package(tmp_path):
    """In a fresh process that has diffusers alone: the same samples; and the card names the samplers."""
    pipe = small_pipeline()
    pipe.scheduler = fit_sampler(pipe, [4, 6], teacher_steps=12, seeds=2)
    pipe.save_pretrained(tmp_path / "model")
    script = """
pipe = DiffusionPipeline.from_pretrained(arguments["folder"], custom_pipeline="pipeline", trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
found["spacing"] = pipe.scheduler.config.timestep_spacing
found["images"] = pipe(2, num_inference_steps=4, seed=1, output_type="np").images.tolist()
found["refused"] = refusal(pipe, num_inference_steps=5)
"""
    found = fresh.run(script, tmp_path / "home", with_package=False, folder=tmp_path / "model")
    assert found["spacing"] == "fitted"
    assert np.array_equal(found["images"], pipe(2, num_inference_steps=4, seed=1, output_type="np").images)
    assert "has no sampler for `num_inference_steps` 5, but for 4, 6" in found["refused"]

    for steps in (4, 6):  # those of the last call, else the most
        card = pipeline_card(pipe, tmp_path / "model", "me/digits", None, None, None)
        assert f"num_inference_steps={steps}, seed=0" in card
        assert "Fitted samplers for N = 4, 6." in card
        assert "weights" not in card
        pipe.scheduler = EtaDDIMScheduler.from_config(pipe.scheduler.config)


def test_fit_sampler_refuses():
    pipe = small_pipeline()
    cases = {
        "must hold a scheduler of this package": ([5], {}),
        "`num_inference_steps` must be in 1..8, but is 9": ([9], {"teacher_steps": 8}),
        "must hold at least one": ([], {}),
        "`teacher_steps` must be in 2..1000, but is 1": ([1], {"teacher_steps": 1}),
        "`seeds` must be at least 1, but is 0": ([2], {"seeds": 0}),
        "`seed` is set by the fit": ([2], {"seed": 0}),
        "`eta` must be 0": ([2], {"eta": 1.0, "teacher_steps": 4, "seeds": 1}),
        "did 3 of 6 steps": ([2], {"teacher_steps": 6, "seeds": 1, "image": torch.rand(1, 1, 8, 8), "strength": 0.5}),
    }
    for message, (steps, arguments) in cases.items():
        one = DDIM_PIPE() if "this package" in message else pipe
        with pytest.raises((ValueError, TypeError), match=message):
            fit_sampler(one, steps, **arguments)
    assert "step" not in vars(pipe.scheduler)
    assert pipe.scheduler.config.fitted_tables is None
    for steps, shown in ((5, "5"), ([2, "a"], "'a'"), ("2", "'2'")):
        with pytest.raises(TypeError, match=f"`num_inference_steps` must be .* but is {shown}"):
            fit_sampler(pipe, steps)
    other = DDPMPipeline(pipe.unet, EtaDDIMInverseScheduler(**COSINE))
    with pytest.raises(TypeError, match="for sampling, but holds a EtaDDIMInverseScheduler"):
        fit_sampler(other, [2])
    other.scheduler = EtaDDIMScheduler(**COSINE)
    torch.nn.init.constant_(pipe.unet.conv_out.weight, math.nan)
    with pytest.raises(ValueError, match="trajectories that are not finite"):
        fit_sampler(other, [2], teacher_steps=4, seeds=1)


class DDIM_PIPE:
    scheduler = DDIMScheduler()


def test_training_ends_with_fitted_samplers(image_folder, tmp_path, caplog):
    """`--fit_steps`; the same run started again keeps them, one that goes on does not: they are of other weights."""
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logger", "none", "--ddpm_num_steps", 12)
    train(*common, "--max_train_steps", 1, "--checkpointing_steps", 1, "--fit_steps", 3, 2)
    pipe = EtaDDIMPipeline.from_pretrained(tmp_path)
    assert [*pipe.scheduler.config.fitted_tables] == ["2", "3"]
    assert pipe(num_inference_steps=3, output_type="np").images.std() > 0
    tables = pipe.scheduler.config.fitted_tables
    caplog.clear()
    with caplog.at_level("INFO"):
        train(*common, "--max_train_steps", 1, "--resume_from_checkpoint", "latest")
    assert EtaDDIMPipeline.from_pretrained(tmp_path).scheduler.config.fitted_tables == tables
    assert "the samplers that were fitted to them stay" in caplog.text
    assert "loss of the last steps" not in caplog.text
    train(*common, "--max_train_steps", 1, "--resume_from_checkpoint", "latest", "--fit_steps", 4)
    assert [*EtaDDIMPipeline.from_pretrained(tmp_path).scheduler.config.fitted_tables] == ["2", "3", "4"]
    train(*common, "--max_train_steps", 2, "--resume_from_checkpoint", "latest")
    scheduler = EtaDDIMPipeline.from_pretrained(tmp_path).scheduler
    assert (scheduler.config.fitted_tables, scheduler.config.timestep_spacing) == (None, "trailing")
    with pytest.raises(SystemExit):
        train(*common, "--max_train_steps", 1, "--fit_steps", 13)


@pytest.mark.parametrize("is_ours", [True, False])
def test_command_fits_a_folder_of_another_scheduler(is_ours, tmp_path):
    """In place, the index names the new scheduler; with `--output` the folder stays as it is."""
    torch.manual_seed(0)
    pipeline_class, scheduler = (EtaDDIMPipeline, EtaDDIMScheduler) if is_ours else (DDPMPipeline, DDPMScheduler)
    pipeline_class(UNet2DModel(**SMALL_UNET), scheduler(**COSINE)).save_pretrained(tmp_path / "model")
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    arguments = [str(tmp_path / "model"), "--steps", "3", "--teacher_steps", "6", "--seeds", "2", "--device", "cpu"]
    main([*arguments, "--output", str(tmp_path / "copy")])
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()}
    main(arguments)
    images = []
    for folder in (tmp_path / "model", tmp_path / "copy"):
        assert not [*folder.rglob("*unfinished*")]
        pipe = DiffusionPipeline.from_pretrained(folder)
        assert (type(pipe), type(pipe.scheduler)) == (pipeline_class, EtaDDIMScheduler)
        generator = torch.Generator().manual_seed(0)
        images.append(pipe(num_inference_steps=3, generator=generator, output_type="np").images)
    assert np.array_equal(*images)


def test_classes_are_repeated_up_to_the_number_of_trajectories(capsys):
    torch.manual_seed(0)
    pipe = EtaDDIMPipeline(UNet2DModel(**SMALL_UNET, num_class_embeds=4), EtaDDIMScheduler(**COSINE))
    for labels, number in (([0, 1, 2], 6), (torch.tensor([0, 1]), 8), ([1] * 9, 9)):
        fit_sampler(pipe, [2], teacher_steps=4, seeds=8, class_labels=labels, guidance_scale=2.0)
        assert f" steps of {number} samples" in capsys.readouterr().out


def test_pipeline_with_a_history(tmp_path):
    pipe = small_pipeline(solver_order=2)
    image = pipe(batch_size=1, num_inference_steps=6, seed=0, output_type="pt").images
    both = pipe(batch_size=2, num_inference_steps=6, seed=0, output_type="pt").images
    torch.testing.assert_close(both[:1], image, rtol=0, atol=1e-5)
    pipe(image=image, strength=0.5, num_inference_steps=6, generator=image_generators(0, range(1)), output_type="pt")
    pipe(image=image, mask=torch.ones(1, 1, 8, 8), num_inference_steps=6, output_type="pt")
    for call in (
        lambda: pipe(image=image, mask=torch.ones(1, 1, 8, 8), num_resamples=2, num_inference_steps=6),
        lambda: pipe.invert(image, num_inference_steps=6),
    ):
        with pytest.raises(ValueError, match="history"):
            call()


# --------------------------------------------------------------------------------------------------------------- flow


def flow_loop(scheduler, x, mean=0.3, std=0.5):
    """Data of N(mean, std^2 I): x_0 = E[x_0 | x_t] on x_t = (1 - sigma) x_0 + sigma eps."""
    for t in scheduler.timesteps:
        sigma = t.item() / 1000
        alpha = 1 - sigma
        x_0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (x - alpha * mean)
        x = scheduler.step((x - x_0) / (sigma or 1), t, x).prev_sample
    return x


def test_flow_order_and_exactness(record_property):
    """Against the exact flow, which keeps the standardised x: the second order is seen, and pure noise at the start."""
    x_T, slopes = randn(64), []
    for order in (1, 2, 3):
        scheduler, errors, counts = EtaFlowMatchScheduler(solver_order=order), [], (40, 80, 160)
        for N in counts:
            sigmas = np.sin(np.linspace(np.pi / 2, 0, N + 1))[:-1]
            scheduler.set_timesteps(sigmas=sigmas)
            errors.append((flow_loop(scheduler, x_T) - 0.3 - 0.5 * x_T).abs().max().item())
        slopes.append(float(-np.polyfit(np.log(counts), np.log(errors), 1)[0]))
    record_property("slopes", slopes)
    assert slopes[0] == pytest.approx(1, abs=0.1)
    assert min(slopes[1:]) > 1.5


def test_flow_history_belongs_to_one_loop():
    scheduler = EtaFlowMatchScheduler(solver_order=2)
    scheduler.set_timesteps(4)
    x, (a, b, c, _) = randn(2, 3), scheduler.timesteps
    scheduler.step(x, a, x)
    with pytest.raises(ValueError, match="out of order"):
        scheduler.step(x, c, x)
    with pytest.raises(ValueError, match="for a step with a history"):
        scheduler.step(x, torch.stack([b, c]), x)
    other = copy.deepcopy(scheduler)
    assert torch.equal(scheduler.step(x, b, x, return_dict=False)[0], other.step(x, b, x).prev_sample)
    scheduler.set_begin_index(2)
    scheduler.step(x, c, x)
    EtaFlowMatchInverseScheduler.from_config(scheduler.config).set_timesteps(4)
    theirs = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=3)
    assert EtaFlowMatchScheduler.from_config(theirs.config).config.solver_order == 1


@pytest.mark.parametrize("kind", ["host", "accelerator"])
@pytest.mark.parametrize("settings", [{"solver_order": 2}, {"solver_order": 3, "eta": 0.5}])
def test_flow_step_that_begins_without_noise(settings, kind, monkeypatch):
    """It stays where it is, whatever was predicted before. Pipelines give such levels, `np.linspace(1, 0, N)`."""
    scheduler, x = EtaFlowMatchScheduler(**settings), randn(2, 3)
    if kind == "accelerator":  # where a timestep cannot be read
        monkeypatch.setattr(EtaFlowMatchScheduler, "_index_at_hand", lambda self, timestep: None)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 5))
    assert scheduler.sigmas[-2:].tolist() == [0, 0]
    generator = torch.Generator().manual_seed(0)
    for i, t in enumerate(scheduler.timesteps):
        before, x = x, scheduler.step(randn(2, 3, seed=i), t, x, generator=generator).prev_sample
    assert torch.equal(x, before)


def test_flow_fit_on_levels_that_end_without_noise():
    scheduler, x_T = EtaFlowMatchScheduler(solver_order=3), randn(16)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, 41))
    with TrajectoryRecorder(scheduler) as teacher:
        end = flow_loop(scheduler, x_T)
    places = fit_timesteps(teacher, 5)
    assert teacher.timesteps[places[-1]] > 0  # none of the five is spent on a step that does nothing
    student = student_of(scheduler, teacher, places)
    student.set_timesteps(5)
    with WeightFitter(student, teacher) as fitter:
        assert (flow_loop(student, x_T) - end).abs().max() < 0.05
    assert len(fitter.table["weights"]) == 5


def test_flow_tables():
    scheduler = EtaFlowMatchScheduler(solver_order=3)
    scheduler.set_timesteps(40)
    x_T = randn(16)
    with TrajectoryRecorder(scheduler) as teacher:
        end = flow_loop(scheduler, x_T)
    student = student_of(scheduler, teacher, fit_timesteps(teacher, 5))
    student.set_timesteps(5, sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])  # as pipelines give them
    with WeightFitter(student, teacher) as fitter:
        flow_loop(student, x_T)
    tables = {"5": fitter.table}
    fitted = EtaFlowMatchScheduler(fitted_tables=json.loads(json.dumps(tables)), use_fitted_sigmas=True)
    euler, errors = EtaFlowMatchScheduler(), []
    for one in (fitted, euler):
        one.set_timesteps(5)
        errors.append((flow_loop(one, x_T) - end).abs().max().item())
    assert errors[0] == pytest.approx(fitter.error, abs=5e-3)
    assert errors[0] < errors[1] / 10
    with pytest.raises(ValueError, match="`use_fitted_sigmas` has no sampler for `num_inference_steps` 6, but for 5"):
        fitted.set_timesteps(6)
    with pytest.raises(ValueError, match=r"\['timesteps'\]` must be finite and in \[0, 100\], but is 1000"):
        EtaFlowMatchScheduler(100, fitted_tables=tables)  # of a model with other timesteps
    with pytest.raises(ValueError, match="this is for flow matching"):
        EtaFlowMatchScheduler(fitted_tables={"3": table()})
    with pytest.raises(ValueError, match="and this is 'v_prediction'"):
        EtaDDIMScheduler(**COSINE, fitted_tables={"5": {**fitter.table, "timesteps": [9, 8, 7, 6, 5]}})


PIPELINES = ["StableDiffusionPipeline", "FluxPipeline"] + [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        "StableDiffusionXLPipeline",
        "StableDiffusionControlNetPipeline",
        "AnimateDiffPipeline",
        "StableDiffusion3Pipeline",
        "WanPipeline",
    )
]


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_of_diffusers(name, tmp_path, capsys):
    """With random parts: nearer to the teacher than order 1, and the same after it was saved and loaded."""
    is_flow = name in ("FluxPipeline", "StableDiffusion3Pipeline", "WanPipeline")
    parts = flow_sweep if is_flow else tiny_pipelines
    if is_flow:
        scheduler = EtaFlowMatchScheduler.from_config(tiny_flow_pipelines.built_in(name).config)
    else:
        scheduler = EtaDDIMScheduler(**{**tiny_pipelines.LATENT, "timestep_spacing": "trailing"})
    pipe = parts.build(name, scheduler)
    own = ("generator", "num_inference_steps", "latents", "output_type", "eta")
    call = {key: value for key, value in parts.arguments(pipe).items() if key not in own}
    if name == "StableDiffusion3Pipeline":
        call["num_images_per_prompt"] = 1  # it repeats no given embeddings
    fitted = fit_sampler(pipe, [4], teacher_steps=20, seeds=2, **call)
    _, before, after, _ = capsys.readouterr().out.strip().splitlines()[-1].split()
    assert float(after) < float(before) / 1.5
    fitted.save_pretrained(tmp_path)
    ends = []
    for pipe.scheduler in (fitted, type(fitted).from_pretrained(tmp_path)):
        generator = torch.Generator().manual_seed(5)
        output = pipe(num_inference_steps=4, generator=generator, **{**call, "output_type": "latent"})[0]
        ends.append(output if isinstance(output, torch.Tensor) else output[0])
    assert torch.equal(*ends)
