"""EtaFlowMatchScheduler: the laws of its steps, and equality with diffusers' scheduler where that is right."""

import copy
import math
import pickle
import threading
from decimal import Decimal, getcontext

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from test_compile import NoWaiting

from ddim_scheduler import EtaFlowMatchInverseScheduler, EtaFlowMatchScheduler

FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scheduler_of(N, cls=EtaFlowMatchScheduler, **config):
    scheduler = cls(**config)
    scheduler.set_timesteps(N, mu=0.9 if config.get("use_dynamic_shifting") else None)
    return scheduler


def random_config(random):
    """A config of the constructor and a call of `set_timesteps`, of every kind."""
    spacing = random.choice(["", "", "", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
    config = {
        "num_train_timesteps": int(random.choice([1, 100, 1000])),
        "shift": float(random.uniform(0.5, 8)),
        "use_dynamic_shifting": bool(random.random() < 0.4),
        "time_shift_type": str(random.choice(["exponential", "linear"])),
        "shift_terminal": float(random.uniform(0.01, 0.3)) if random.random() < 0.3 else None,
        "invert_sigmas": bool(random.random() < 0.2),
    } | ({str(spacing): True} if spacing else {})
    N = int(random.integers(1, 40))
    call = {"num_inference_steps": N} if random.random() < 0.6 else {"sigmas": np.linspace(1, 1 / N, N)}
    if config["use_dynamic_shifting"]:
        call["mu"] = float(random.uniform(0.2, 2))
    return config, call


def test_grid_and_euler_steps_of_random_configs():
    """Bit-equal grids, and at eta = 0 the built-in's samples; a grid that is none is refused."""
    random, number_refused = np.random.default_rng(0), 0
    for _ in range(200):
        config, call = random_config(random)
        theirs, ours = FlowMatchEulerDiscreteScheduler(**config), EtaFlowMatchScheduler(**config)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        with np.errstate(all="ignore"):
            theirs.set_timesteps(**call)
        sign = -1 if config["invert_sigmas"] else 1
        if not (sign * theirs.timesteps.diff() < 0).all() or not theirs.sigmas.isfinite().all():
            number_refused += 1
            with pytest.raises(ValueError, match="strictly decreasing"):
                ours.set_timesteps(**call)
            continue
        ours.set_timesteps(**call)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert torch.equal(ours.sigmas, theirs.sigmas)
        x = y = randn(2, 3, dtype=torch.float32)
        for i, t in enumerate(theirs.timesteps):
            u = randn(2, 3, seed=i, dtype=torch.float32)
            general = ours.step(u, t, y)  # as a dictionary: by the formula of every eta
            x, y = theirs.step(u, t, x, return_dict=False)[0], ours.step(u, t, y, return_dict=False)[0]
            assert (x - y).abs().max() < 2e-6
            assert (general.prev_sample - y).abs().max() < 2e-6
    assert 5 < number_refused < 60


def test_step_is_the_posterior_of_the_markov_chain_at_eta_1():
    """p(x_s | x_t, x_0) by Bayes in 60 digits, for levels that are near each other and near the ends as well."""
    getcontext().prec = 60
    random = np.random.default_rng(0)
    for _ in range(60):
        levels = np.sort(random.beta(0.3, 0.3, 12).astype(np.float32))[::-1]
        if (np.diff(levels) == 0).any() or levels[0] >= 1 or levels[-1] < 1e-6:
            continue
        scheduler = EtaFlowMatchScheduler()
        scheduler.set_timesteps(sigmas=levels)
        levels = [Decimal(s) for s in scheduler.sigmas.double().tolist()]
        x_0, x_t = Decimal("0.7"), Decimal("-1.3")
        for t, sigma_t, sigma_s in zip(scheduler.timesteps, levels, levels[1:-1], strict=False):
            ratio = (1 - sigma_t) / (1 - sigma_s)  # x_t = ratio x_s + fresh z
            fresh = sigma_t**2 - ratio**2 * sigma_s**2
            variance = 1 / (1 / sigma_s**2 + ratio**2 / fresh)
            mean = variance * ((1 - sigma_s) * x_0 / sigma_s**2 + ratio * x_t / fresh)
            u = torch.tensor([[float((x_t - x_0) / sigma_t)]], dtype=torch.float64)
            found = scheduler.transition(u, t, torch.tensor([[float(x_t)]], dtype=torch.float64), eta=1.0)
            assert abs(found.mean.item() - float(mean)) < 1e-12
            assert abs(found.std.item() / float(variance.sqrt()) - 1) < 1e-12


@pytest.mark.parametrize("config", [{}, FLUX, {"invert_sigmas": True}, {"stochastic_sampling": True}])
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_noise_level_is_kept_for_every_eta(config, eta):
    """The noise of x_s given x_0 is sigma_s, and its mean alpha_s x_0: at x_0 = 0, eps = 1 the mean is `direction`."""
    scheduler = scheduler_of(9, **config)
    sign, levels = (-1, 1 - scheduler.sigmas) if config.get("invert_sigmas") else (1, scheduler.sigmas)
    levels = levels.double()
    for t, sigma_t, sigma_s in zip(scheduler.timesteps, levels, levels[1:], strict=False):
        for x_0, eps in ((0.0, 1.0), (2.0, 0.0)):
            x_t = torch.full((1, 1), (1 - sigma_t) * x_0 + sigma_t * eps, dtype=torch.float64)
            u = torch.full((1, 1), sign * (eps - x_0), dtype=torch.float64)
            mean, std, found = scheduler.transition(u, t, x_t, eta)
            assert abs(found.item() - x_0) < 1e-12
            if eps:
                assert abs(math.hypot(mean.item(), std.item()) - sigma_s.item()) < 1e-12
            else:
                assert abs(mean.item() - (1 - sigma_s.item()) * x_0) < 1e-12


def velocity_of_gaussian(x, sigma, std=0.5):
    """The exact u for data of N(0, std^2)."""
    alpha = 1 - sigma
    x_0 = alpha * std**2 / (alpha**2 * std**2 + sigma**2) * x
    return (x - x_0) / sigma


@pytest.mark.parametrize("config", [{}, FLUX])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_order_of_convergence(config, eta, record_property):
    """The std of the samples, by recursion, approaches that of the data with the power -1 of the number of steps."""
    errors = []
    for N in (400, 800):
        scheduler, variance = scheduler_of(N, **config), 1.0
        for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double().tolist(), strict=False):
            x = torch.ones(1, 1, dtype=torch.float64)
            mean, std, _ = scheduler.transition(velocity_of_gaussian(x, sigma), t, x, eta)
            variance = mean.item() ** 2 * variance + std.item() ** 2
        errors.append(abs(math.sqrt(variance) / 0.5 - 1))
    order = math.log2(errors[1] / errors[0])
    record_property("order each", order)
    assert -1.08 < order < -0.92


@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("N", [1, 2, 7])
def test_point_mass_is_found_exactly(N, eta):
    scheduler, x_0 = scheduler_of(N, **FLUX), randn(2, 3)
    x = randn(2, 3, seed=1)
    for t, sigma in zip(scheduler.timesteps, scheduler.sigmas.double(), strict=False):
        x = scheduler.step((x - x_0) / sigma, t, x, eta=eta).prev_sample
    assert (x - x_0).abs().max() < 1e-12


def test_variance_exploding_with_a_written_end():
    """Cosmos2: x = x_0 + sigma eps, levels of 80 to 0.002, and the last step stays where it is."""
    schedulers = [cls(use_karras_sigmas=True) for cls in (FlowMatchEulerDiscreteScheduler, EtaFlowMatchScheduler)]
    for scheduler in schedulers:
        scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0, final_sigmas_type="sigma_min")
        scheduler.set_timesteps(sigmas=torch.linspace(0, 1, 12, dtype=torch.float64))
        scheduler.sigmas[-1] = scheduler.sigmas[-2]
    theirs, ours = schedulers
    assert torch.equal(ours.sigmas, theirs.sigmas)
    x = y = 80 * randn(2, 3, dtype=torch.float32)
    for i, t in enumerate(ours.timesteps):
        u = randn(2, 3, seed=i, dtype=torch.float32)
        x, y = theirs.step(u, t, x)[0], ours.step(u, t, y)[0]
        assert (x - y).abs().max() < 1e-4
    mean, std, _ = ours.transition(u, t, y, 1.0)
    assert std == 0
    assert torch.equal(mean, y)
    x_0, x = randn(2, 3), 80 * randn(2, 3, seed=1)
    for t, sigma in zip(ours.timesteps, ours.sigmas.double(), strict=False):
        mean, std, found = ours.transition((x - x_0) / sigma, t, x, 1.0)
        assert (found - x_0).abs().max() < 1e-12
        x = mean
    assert ((x - x_0) / sigma).abs().max() < 1  # the mean of the last noise
    with pytest.raises(ValueError, match="`sigmas` must be in"):
        EtaFlowMatchScheduler(use_karras_sigmas=True).set_timesteps(sigmas=[80.0, 1.0])


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_timesteps_of_tokens(eta):
    """Equal to the built-in at eta = 0; one step of a token equals the step of a sample at its level."""
    scheduler, theirs = scheduler_of(5, shift=3.0), scheduler_of(5, FlowMatchEulerDiscreteScheduler, shift=3.0)
    x, u, z = (randn(2, 6, 4, seed=i, dtype=torch.float32) for i in range(3))
    grid = scheduler.timesteps
    tokens = torch.stack([grid[[0, 1, 2, 3, 4, 4]], torch.cat([grid[[1, 1]] - 20, grid[[3, 2, 0]], grid.new_zeros(1)])])
    found = scheduler.step(-u, grid[0], x, per_token_timesteps=tokens, eta=eta, variance_noise=z)
    if eta == 0:
        expected = theirs.step(-u, grid[0], x, per_token_timesteps=tokens)[0]
        assert (found.prev_sample - expected).abs().max() < 1e-6
    for b in range(2):
        for i, t in enumerate(tokens[b].tolist()):
            part = [tensor[b, i][None] for tensor in (u, x, z)]
            if t == 0:
                expected = part[1]
            elif t in grid.tolist():
                expected = scheduler.step(part[0], t, part[1], eta=eta, variance_noise=part[2]).prev_sample
            else:
                continue
            assert (found.prev_sample[b, i] - expected[0]).abs().max() < 1e-6


def test_timesteps_and_etas_of_each_sample_equal_one_by_one():
    scheduler = scheduler_of(5, **FLUX)
    x, u, z = (randn(4, 3, 2, seed=i) for i in range(3))
    timesteps, etas = scheduler.timesteps[[0, 3, 4, 1]], torch.tensor([0.0, 0.5, 1.0, 1.0])
    together = scheduler.step(u, timesteps, x, eta=etas, variance_noise=z).prev_sample
    for i, (t, eta) in enumerate(zip(timesteps, etas.tolist(), strict=True)):
        alone = scheduler.step(u[i : i + 1], t, x[i : i + 1], eta=eta, variance_noise=z[i : i + 1]).prev_sample
        assert (together[i : i + 1] - alone).abs().max() < 1e-12

    def step(u, t, x, z):
        return scheduler.step(u[None], t, x[None], eta=0.5, variance_noise=z[None], return_dict=False)[0][0]

    alone = torch.stack([step(*arguments) for arguments in zip(u, timesteps, x, z, strict=True)])
    assert (torch.vmap(step)(u, timesteps, x, z) - alone).abs().max() < 1e-12


def test_any_order_of_calls_and_two_threads():
    """The built-in counts its steps."""
    scheduler = scheduler_of(20, shift=3.0)
    x, u = randn(2, 3), randn(2, 3, seed=1)
    expected = {t: scheduler.step(u, t, x, return_dict=False)[0] for t in scheduler.timesteps.tolist()}
    errors = []

    def walk(timesteps):
        for _ in range(20):
            errors.extend((scheduler.step(u, t, x)[0] - expected[t]).abs().max().item() for t in timesteps)

    orders = [[*expected], [*expected][::-1]]
    threads = [threading.Thread(target=walk, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 800
    assert max(errors) < 1e-12
    theirs = scheduler_of(2, FlowMatchEulerDiscreteScheduler)
    for t in theirs.timesteps:
        theirs.step(u, t, x)
    with pytest.raises(IndexError):
        theirs.step(u, t, x)


def test_log_prob_and_gradients():
    scheduler = scheduler_of(6, **FLUX)
    t, x, u = scheduler.timesteps[2], randn(2, 3), randn(2, 3, seed=1)
    x_s = scheduler.step(u, t, x, eta=0.7, generator=torch.Generator().manual_seed(0)).prev_sample

    def log_prob(u, x):
        mean, std, _ = scheduler.transition(u, t, x, 0.7)
        return scheduler.log_prob(x_s, mean, std)

    mean, std, _ = scheduler.transition(u, t, x, 0.7)
    assert (log_prob(u, x) - torch.distributions.Normal(mean, std).log_prob(x_s).sum(1)).abs().max() < 1e-12
    assert torch.autograd.gradcheck(log_prob, (u.requires_grad_(), x.requires_grad_()))
    z = scheduler.noise_between(u, t, x, x_s, 0.7)
    assert (scheduler.step(u, t, x, eta=0.7, variance_noise=z.detach()).prev_sample - x_s).abs().max() < 1e-12


def test_published_stochastic_steps_are_settings():
    """Flow-CPS (a: noise level) is eta = sin(pi a / 2), and the built-in's `stochastic_sampling` is eta = 1."""
    x, u, z = (randn(2, 3, seed=i, dtype=torch.float32) for i in range(3))
    ours = scheduler_of(6, shift=3.0, stochastic_sampling=True)
    theirs = scheduler_of(6, FlowMatchEulerDiscreteScheduler, shift=3.0, stochastic_sampling=True)
    assert ours.config.eta == 1
    for i, t in enumerate(ours.timesteps):
        torch.manual_seed(i)  # for the built-in before 0.42, which uses no generator here
        found, expected = (s.step(u, t, x, generator=torch.Generator().manual_seed(i))[0] for s in (ours, theirs))
        assert (found - expected).abs().max() < 1e-6
        sigma_t, sigma_s = ours.sigmas[i : i + 2].tolist()
        for a in (0.2, 0.8):
            x_0, x_1 = x - sigma_t * u, x + (1 - sigma_t) * u
            angle = a * math.pi / 2
            expected = (1 - sigma_s) * x_0 + sigma_s * (math.cos(angle) * x_1 + math.sin(angle) * z)
            found = ours.step(u, t, x, eta=math.sin(angle), variance_noise=z).prev_sample
            assert (found - expected).abs().max() < 1e-6


DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("of_sample", DTYPES)
@pytest.mark.parametrize("of_output", DTYPES)
def test_dtype_is_the_promotion_and_the_arithmetic_float32(of_sample, of_output):
    scheduler = scheduler_of(8, shift=3.0)
    t, x, u, z = scheduler.timesteps[3], randn(64, seed=0)[None], randn(64, seed=1)[None], randn(64, seed=2)[None]
    x, u = x.to(of_sample), u.to(of_output)
    dtype = torch.promote_types(of_sample, of_output)
    z = z.to(dtype)
    for eta in (0.0, 0.6):
        exact = scheduler.step(u.double(), t, x.double(), eta=eta, variance_noise=z.double()).prev_sample
        for return_dict in (True, False):
            found = scheduler.step(u, t, x, eta=eta, variance_noise=z, return_dict=return_dict)[0]
            assert found.dtype == dtype
            epsilon = max(torch.finfo(dtype).eps, 1e-15 if dtype == torch.float64 else 2e-7)
            assert ((found.double() - exact).abs() / exact.abs().clamp(min=1)).max() < 1.5 * epsilon


def test_every_kind_of_timestep_finds_its_place():
    """A float32 or float64 of any shape with one element, and what differs by rounding: 10 of 1000 integers do."""
    scheduler = EtaFlowMatchScheduler()
    integers = torch.arange(1, 1001)
    assert (scheduler.timesteps.flip(0) != integers).sum() == 10
    x_0, noise = randn(1000, 1), randn(1000, 1, seed=1)
    noisy = scheduler.add_noise(x_0, noise, integers.double())
    assert (noisy - ((1 - integers[:, None] / 1000) * x_0 + integers[:, None] / 1000 * noise)).abs().max() < 1e-6
    scheduler.set_timesteps(10, sigmas=np.linspace(1, 0.1, 10))
    t, u, x = scheduler.timesteps[4], randn(1, 2), randn(1, 2, seed=1)
    expected = scheduler.step(u, t, x)[0]
    for same in (t.item(), t.double(), t[None], t.view(1, 1), np.float32(t), np.float64(t), t.item() + 2e-4):
        assert torch.equal(scheduler.step(u, same, x)[0], expected)
    for other in (4, torch.tensor(4), t.bfloat16(), t.half(), t.item() + 2, math.nan, "600", None):
        with pytest.raises(ValueError, match="`timestep`"):
            scheduler.step(u, other, x)
    assert scheduler.previous_timestep(t) == scheduler.timesteps[5]
    assert scheduler.previous_timestep(scheduler.timesteps[-1]) == 0
    assert scheduler.index_for_timestep(600.0001) == 4


def test_noise_of_the_training():
    for config in ({}, {"shift": 3.0}, FLUX):
        scheduler, theirs = EtaFlowMatchScheduler(**config), FlowMatchEulerDiscreteScheduler(**config)
        x_0, noise = randn(3, 2, dtype=torch.float32), randn(3, 2, seed=1, dtype=torch.float32)
        for _ in range(2):
            t = scheduler.timesteps[[0, 5, 2]]
            found, expected = (s.scale_noise(x_0, t, noise) for s in (scheduler, theirs))
            assert (found - expected).abs().max() < 1e-6
            assert torch.equal(scheduler.add_noise(x_0, noise, t), found)
            for s in (scheduler, theirs):
                s.set_timesteps(9, mu=0.7 if config is FLUX else None)
    assert torch.equal(scheduler.get_velocity(x_0, noise), noise - x_0)
    assert scheduler.scale_noise(x_0.bfloat16(), t, noise.bfloat16()).dtype == torch.bfloat16
    mochi = scheduler_of(4, invert_sigmas=True)
    x_t = mochi.scale_noise(x_0, mochi.timesteps[1], noise)
    step = mochi.step(mochi.get_velocity(x_0, noise), mochi.timesteps[1], x_t)
    assert (step.pred_original_sample - x_0).abs().max() < 1e-6


# ------------------------------------------------------------------------------------------------------- no host wait


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("timesteps_on_device", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_loop_reads_nothing_back(device, timesteps_on_device, eta):
    schedulers = EtaFlowMatchScheduler(**FLUX), EtaFlowMatchInverseScheduler(**FLUX)
    with NoWaiting():
        for scheduler in schedulers:
            scheduler.set_timesteps(5, device=device if timesteps_on_device else None, mu=0.9)
            x = torch.empty(2, 3, device=device)
            given = {} if isinstance(scheduler, EtaFlowMatchInverseScheduler) else {"eta": eta}
            for t in scheduler.timesteps:
                for timestep in (t, t.expand(2), t.clone()):
                    x = scheduler.step(torch.empty_like(x), timestep, x, **given, return_dict=False)[0]
            assert x.shape == (2, 3)


def test_place_in_memory_tells_the_timestep():
    """What a loop on an accelerator goes by, in every mode of autograd and for the inverse."""
    for cls in (EtaFlowMatchScheduler, EtaFlowMatchInverseScheduler):
        scheduler = scheduler_of(6, cls, **FLUX)
        values = scheduler.timesteps.tolist()
        scheduler.set_timesteps(6, device="meta", mu=0.9)
        for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            with mode():
                found = [scheduler._index_at_hand(t) for t in [*scheduler.timesteps[:2], *scheduler.timesteps[2:]]]
        expected = scheduler_of(6, cls, **FLUX)
        assert found == [expected.index_for_timestep(t) for t in values]


def test_one_compilation_of_a_loop():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    scheduler = scheduler_of(28, **FLUX)
    step = torch.compile(scheduler.step, fullgraph=True, backend="aot_eager")
    x = randn(2, 3, dtype=torch.float32)
    for i, t in enumerate(scheduler.timesteps):
        u = randn(2, 3, seed=i, dtype=torch.float32)
        expected = scheduler.step(u, t, x, return_dict=False)[0]
        x = step(u, t, x, return_dict=False)[0]
        assert (x - expected).abs().max() < 1e-6
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_export():
    scheduler = scheduler_of(5, **FLUX)

    class Step(torch.nn.Module):
        def forward(self, u, t, x, z):
            return scheduler.step(u, t, x, eta=0.5, variance_noise=z, return_dict=False)[0]

    x, u, z = (randn(2, 3, seed=i, dtype=torch.float32) for i in range(3))
    exported = torch.export.export(Step(), (u, scheduler.timesteps[0], x, z)).module()
    for t in scheduler.timesteps:
        assert (exported(u, t, x, z) - Step()(u, t, x, z)).abs().max() < 1e-6


def test_positions_of_the_built_in_and_the_attribute_generator():
    scheduler, theirs = scheduler_of(4), scheduler_of(4, FlowMatchEulerDiscreteScheduler)
    x, u, t = randn(1, 2, dtype=torch.float32), randn(1, 2, dtype=torch.float32), scheduler.timesteps[0]
    positions = (u, t, x, 0.0, 0.0, math.inf, 1.0, torch.Generator(), None, False)
    assert (scheduler.step(*positions)[0] - theirs.step(*positions)[0]).abs().max() < 1e-6
    scheduler.generator = torch.Generator().manual_seed(7)
    found = scheduler.step(u, t, x, eta=1.0)[0]
    assert torch.equal(found, scheduler.step(u, t, x, eta=1.0, generator=torch.Generator().manual_seed(7))[0])
    twin = copy.deepcopy(scheduler)
    assert not torch.equal(twin.step(u, t, x, eta=1.0)[0], scheduler.step(u, t, x, eta=1.0)[0])
    again = pickle.loads(pickle.dumps(scheduler))
    assert torch.equal(again.step(u, t, x, eta=1.0)[0], scheduler.step(u, t, x, eta=1.0)[0])


# ---------------------------------------------------------------------------------------------------------- the inverse


@pytest.mark.parametrize("config", [{}, FLUX, {"invert_sigmas": True}])
def test_inverse_is_the_inverse(config):
    scheduler, inverse = scheduler_of(6, **config), scheduler_of(6, EtaFlowMatchInverseScheduler, **config)
    assert torch.equal(inverse.timesteps, scheduler.timesteps.flip(0))
    assert torch.equal(inverse.sigmas, scheduler.sigmas.flip(0))
    start = x = randn(2, 3)
    outputs = {t: randn(2, 3, seed=i) for i, t in enumerate(scheduler.timesteps.tolist())}
    predicted = {}
    for t, u in outputs.items():
        x, predicted[t] = scheduler.step(u, t, x).to_tuple()
    for t in inverse.timesteps.tolist():
        x, x_0 = inverse.step(outputs[t], t, x).to_tuple()
        assert (x_0 - predicted[t]).abs().max() < 1e-12
    assert (x - start).abs().max() < 1e-12
    other = inverse.midpoint_step(outputs[t], scheduler.timesteps[3], x, start)
    back = scheduler.midpoint_step(outputs[t], scheduler.timesteps[3], x, other, inverse=True)
    assert (back - start).abs().max() < 1e-10
