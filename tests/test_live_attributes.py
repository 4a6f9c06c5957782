"""What people write into a scheduler, by assignment or in place, takes effect as in diffusers, or is refused."""

import copy
import pickle

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.training_utils import compute_snr

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMScheduler, EtaFlowMatchScheduler

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "timestep_spacing": "trailing",
}


def restored(scheduler, timesteps=None, x_0=0.5):
    """The largest error at the end of a loop with an exact model of the image that is x_0 everywhere."""
    bars = scheduler.alphas_cumprod.double()
    timesteps = scheduler.timesteps if timesteps is None else timesteps
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = bars[timesteps[0]].sqrt() * x_0 + (1 - bars[timesteps[0]]).sqrt() * noise
    for t in timesteps:
        epsilon = (x - bars[t].sqrt() * x_0) / (1 - bars[t]).sqrt()
        x = scheduler.step(epsilon, t, x).prev_sample
    return (x - x_0).abs().max().item()


def write_timesteps(scheduler):
    scheduler.set_timesteps(4)
    scheduler.timesteps = torch.tensor([999, 749, 499, 249])


def write_timesteps_in_place(scheduler):
    scheduler.set_timesteps(3)
    scheduler.timesteps[1:] -= 50


def write_timesteps_and_their_number(scheduler):
    scheduler.set_timesteps(1000)
    scheduler.timesteps = torch.tensor([999, 749, 499, 249])
    scheduler.num_inference_steps = 4


def write_number_alone(scheduler):
    scheduler.num_inference_steps = 8
    scheduler.timesteps = scheduler.timesteps[::125]


def write_final_level(scheduler):
    scheduler.set_timesteps(5)
    scheduler.final_alpha_cumprod = torch.tensor(1.0)


def write_final_level_in_place(scheduler):
    scheduler.set_timesteps(5)
    scheduler.final_alpha_cumprod.fill_(1.0)


def write_bars(scheduler):
    write_final_level(scheduler)
    bars = scheduler.alphas_cumprod
    scheduler.alphas_cumprod = bars / (bars + 4 * (1 - bars))


def write_bars_in_place(scheduler):
    write_final_level(scheduler)
    scheduler.alphas_cumprod.pow_(1.5)


def write_betas(scheduler):
    write_final_level(scheduler)
    scheduler.betas = torch.linspace(1e-4, 0.03, 1000)


def write_alphas(scheduler):
    write_final_level(scheduler)
    scheduler.alphas = 1 - torch.linspace(1e-4, 0.03, 1000)


def write_shorter_bars(scheduler):
    scheduler.alphas_cumprod = (1 - torch.linspace(1e-3, 0.2, 100)).cumprod(0)
    scheduler.final_alpha_cumprod = 1.0
    scheduler.config.num_train_timesteps = 100
    scheduler.set_timesteps(7)


def write_config(scheduler):
    scheduler.config.set_alpha_to_one = True
    scheduler.config.beta_end = 0.02
    scheduler.set_timesteps(6)


def register_config(scheduler):
    scheduler.set_timesteps(6)
    scheduler.register_to_config(set_alpha_to_one=True, beta_schedule="squaredcos_cap_v2", timestep_spacing="leading")


def replace_config(scheduler):
    """As diffusers' pipelines correct the config of Stable Diffusion's scheduler."""
    scheduler.set_timesteps(6)
    scheduler._internal_dict = FrozenDict({**scheduler.config, "set_alpha_to_one": True})


WRITES = [
    write_timesteps,
    write_timesteps_in_place,
    write_timesteps_and_their_number,
    write_number_alone,
    write_final_level,
    write_final_level_in_place,
    write_bars,
    write_bars_in_place,
    write_betas,
    write_alphas,
    write_shorter_bars,
    write_config,
    register_config,
    replace_config,
]
COPIES = {
    "itself": lambda scheduler: scheduler,
    "deepcopy": copy.deepcopy,
    "pickle": lambda scheduler: pickle.loads(pickle.dumps(scheduler)),
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("write", WRITES)
def test_a_point_mass_is_restored_after_every_write(write, copied):
    scheduler = EtaDDIMScheduler(
        **STABLE_DIFFUSION | {"set_alpha_to_one": "timesteps" in write.__name__ or "number" in write.__name__}
    )
    write(scheduler)
    scheduler = COPIES[copied](scheduler)
    assert restored(scheduler) < 1e-5
    grid = [*scheduler.timesteps.tolist(), -1]
    assert [scheduler.previous_timestep(t) for t in grid[:-1]] == grid[1:]
    # one schedule in the object: what follows from what
    betas, bars = scheduler.betas.double(), scheduler.alphas_cumprod.double()
    assert (scheduler.alphas.double() - (1 - betas)).abs().max() < 1e-6
    assert ((1 - betas).cumprod(0) - bars).abs().max() < 1e-4
    t = scheduler.timesteps[len(scheduler.timesteps) // 2]
    x, z = torch.ones(1, 2), torch.full((1, 2), 2.0)
    expected = bars[t].sqrt() + 2 * (1 - bars[t]).sqrt()
    assert (scheduler.add_noise(x, z, t[None]) - expected).abs().max() < 1e-5
    assert (compute_snr(scheduler, t[None]) - bars[t] / (1 - bars[t])).abs() < 1e-3 * bars[t] / (1 - bars[t])


@pytest.mark.parametrize("num_inference_steps", [4, 7, 50])
def test_written_number_alone_means_a_stride_as_in_diffusers(num_inference_steps):
    """With no `set_timesteps` at all, for timesteps of one's own."""
    x, output = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    schedulers = [cls(clip_sample=False) for cls in (DDIMScheduler, EtaDDIMScheduler)]
    for scheduler in schedulers:
        scheduler.num_inference_steps = num_inference_steps
    for t in (999, 749, 500, 142, 3):
        theirs, ours = (scheduler.step(output, t, x).prev_sample for scheduler in schedulers)
        assert (ours - theirs).abs().max() < 1e-4 * max(1, theirs.abs().max())
        assert schedulers[1].previous_timestep(t) == max(-1, t - 1000 // num_inference_steps)


def test_lower_number_of_training_timesteps_changes_the_grids_alone():
    """22 public copies of one script do so: the noise levels are all still there."""
    scheduler = EtaDDIMScheduler()
    scheduler.config.num_train_timesteps = 700
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 665
    x = torch.ones(1, 1)
    assert torch.equal(
        scheduler.add_noise(x, x, torch.tensor([999])), EtaDDIMScheduler().add_noise(x, x, torch.tensor([999]))
    )
    scheduler.config.num_train_timesteps = 1001
    with pytest.raises(ValueError, match=r"`num_train_timesteps` must be in 1..1000, but is 1001"):
        scheduler.set_timesteps(20)


@pytest.mark.parametrize("write", ["attribute", "register_to_config", "_internal_dict"])
def test_config_entries_of_the_step_take_effect(write):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    if write == "attribute":
        scheduler.config.clip_sample = False
    elif write == "register_to_config":
        scheduler.register_to_config(clip_sample=False)
    else:
        scheduler._internal_dict = FrozenDict({**scheduler.config, "clip_sample": False})
    assert (
        scheduler.config["clip_sample"] is scheduler.config.get("clip_sample") is scheduler.config.clip_sample is False
    )
    x = torch.full((1, 1, 2, 2), 100.0)
    assert scheduler.step(torch.zeros_like(x), 900, x).pred_original_sample.max() > 1
    assert EtaDDIMScheduler.from_config(scheduler.config).config.clip_sample is False
    # no default any more, which another class would replace by its own
    scheduler.config.timestep_spacing = "trailing"
    assert EtaDDIMScheduler.from_config(scheduler.config).config.timestep_spacing == "trailing"
    assert DDIMScheduler.from_config(scheduler.config).config.timestep_spacing == "trailing"


def test_what_is_written_last_decides_and_the_digits_stay():
    scheduler = EtaDDIMScheduler()
    log_alphas_cumprod = scheduler._log_alphas_cumprod.copy()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone()
    scheduler.betas = scheduler.betas.to(torch.float64)
    assert (
        scheduler._log_alphas_cumprod == log_alphas_cumprod
    ).all()  # the float64 table, not what float32 keeps of it
    scheduler.set_timesteps(4)
    scheduler.num_inference_steps = 10
    assert scheduler.previous_timestep(750) == 650
    scheduler.timesteps = scheduler.timesteps[:2]
    assert scheduler.previous_timestep(750) == 500
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**2
    assert scheduler.final_alpha_cumprod == 1
    scheduler.set_timesteps(4)
    assert scheduler.previous_timestep(500) == 250


def test_inverse_and_ascending_timesteps():
    inverse = EtaDDIMInverseScheduler(clip_sample=False)
    inverse.set_timesteps(10)
    inverse.timesteps = torch.tensor([100, 300, 800])
    assert inverse.timesteps.tolist() == [100, 300, 800]
    assert [inverse.previous_timestep(t) for t in (100, 300, 800)] == [-1, 100, 300]
    sampler = EtaDDIMScheduler(clip_sample=False)
    sampler.set_timesteps(10)
    sampler.timesteps = sampler.timesteps.flip(0)
    assert sampler.previous_timestep(900) == 800


def test_writes_within_inference_mode():
    scheduler = EtaDDIMScheduler(clip_sample=False)
    with torch.inference_mode():
        scheduler.set_timesteps(4)
        scheduler.timesteps[0] = 900
        assert restored(scheduler) < 1e-5
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.clone() ** 2
        assert restored(scheduler) < 1e-5
        scheduler.alphas_cumprod.sqrt_()
    assert restored(scheduler) < 1e-5
    assert (scheduler.alphas_cumprod - EtaDDIMScheduler().alphas_cumprod).abs().max() < 1e-6


def test_writes_reach_a_compiled_step():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    scheduler = EtaDDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(4)
    step = torch.compile(scheduler.step, fullgraph=True, backend="aot_eager")
    x, t = torch.full((1, 1, 2, 2), 0.5), torch.tensor(750)
    before = step(x, t, x).prev_sample
    for write in (write_timesteps, write_bars):
        write(scheduler)
        expected = scheduler.step(x, t, x).prev_sample
        assert (step(x, t, x).prev_sample - expected).abs().max() < 1e-6
        assert (before - expected).abs().max() > 1e-3
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timesteps", torch.tensor([999.0, 500.0])),
        ("timesteps", [1000, 500]),
        ("timesteps", [500, -1]),
        ("timesteps", None),
        ("timesteps", []),
        ("timesteps", torch.tensor(500)),
        ("num_inference_steps", 0),
        ("num_inference_steps", 1001),
        ("num_inference_steps", 2.5),
        ("final_alpha_cumprod", 1.1),
        ("final_alpha_cumprod", 0.5),
        ("final_alpha_cumprod", "one"),
        ("alphas_cumprod", torch.linspace(0.1, 0.9, 1000)),
        ("alphas_cumprod", torch.full((1000,), float("nan"))),
        ("alphas_cumprod", torch.ones(10, 100)),
        ("betas", torch.full((1000,), 1.5)),
        ("alphas", torch.zeros(1000)),
    ],
)
def test_refused_by_name_and_nothing_is_changed(name, value):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    before = copy.deepcopy(vars(scheduler))
    with pytest.raises((ValueError, TypeError), match=f"`{name}`" if name != "alphas" else "`1 - alphas`"):
        setattr(scheduler, name, value)
    for key in ("timesteps", "betas", "alphas", "alphas_cumprod", "final_alpha_cumprod"):
        assert torch.equal(getattr(scheduler, key), before[key])
    assert scheduler.num_inference_steps == 10
    assert (scheduler._table.array == before["_table"].array).all()


@pytest.mark.parametrize(
    ("name", "value"), [("beta_end", 2.0), ("clip_sample", "no"), ("prediction_type", "noise"), ("eta", -0.1)]
)
def test_config_entries_are_refused_by_name(name, value):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        scheduler.register_to_config(**{name: value})
    assert scheduler.config[name] == EtaDDIMScheduler().config[name]
    x = torch.randn(1, 1, 2, 2)
    scheduler.step(x, 900, x)
    setattr(scheduler.config, name, value)  # diffusers' own object; the next step finds it
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        scheduler.step(x, 900, x)


def test_refused_in_place_at_the_next_step():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    scheduler.alphas_cumprod[500] = 2.0
    x = torch.randn(1, 1, 2, 2)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"`alphas_cumprod` must be in \(0, 1\).*number 500 is 2.0"):
            scheduler.step(x, 900, x)
    scheduler.alphas_cumprod[500] = EtaDDIMScheduler().alphas_cumprod[500]
    scheduler.step(x, 900, x)


def test_numbers_of_numpy_and_lists_can_be_written():
    scheduler = EtaDDIMScheduler(**STABLE_DIFFUSION)
    scheduler.timesteps = np.array([999, 500, 250])
    scheduler.num_inference_steps = np.int64(3)
    scheduler.final_alpha_cumprod = np.float32(1)
    assert restored(scheduler) < 1e-5


def test_config_item_and_array_writes_and_what_is_saved(tmp_path):
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(5)
    scheduler.config["clip_sample"] = False
    x = torch.full((1, 1, 2, 2), 100.0)
    assert scheduler.step(torch.zeros_like(x), 800, x).pred_original_sample.max() > 1
    for end in (0.02, 0.03):
        scheduler.register_to_config(trained_betas=np.linspace(1e-4, end, 1000))
    assert abs(scheduler.betas[-1] - 0.03) < 1e-6
    scheduler.config.eta = np.float32(0.5)
    scheduler.save_pretrained(tmp_path)
    assert EtaDDIMScheduler.from_pretrained(tmp_path).config.eta == 0.5
    scheduler.config.clip_sample = "no"
    with pytest.raises(TypeError, match="`clip_sample`"):
        scheduler.save_pretrained(tmp_path)


def test_config_and_tensor_written_between_two_uses():
    scheduler = EtaDDIMScheduler()
    scheduler.config.beta_schedule = "scaled_linear"
    scheduler.alphas_cumprod.mul_(0.9)
    x = torch.ones(1, 1)
    assert abs(scheduler.add_noise(x, 0 * x, torch.tensor([0])).item() ** 2 - 0.9 * 0.9999) < 1e-4


def test_inverse_keeps_its_direction_with_another_length():
    inverse = EtaDDIMInverseScheduler(clip_sample=False)
    inverse.set_timesteps(4)
    inverse.alphas_cumprod = inverse.alphas_cumprod[:950]
    assert inverse.timesteps.tolist() == [0, 250, 500, 750]
    assert inverse.previous_timestep(500) == 250


def test_number_written_as_it_is_changes_nothing():
    scheduler = EtaDDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(7)
    scheduler.timesteps = scheduler.timesteps[2:]
    scheduler.num_inference_steps = scheduler.num_inference_steps
    assert [scheduler.previous_timestep(t) for t in scheduler.timesteps[:-1]] == scheduler.timesteps[1:].tolist()


@pytest.mark.parametrize("numbers", [(5, 10), (1000, 10), (5, None, 10), (3, 5, 10)])
def test_number_that_is_written_back_gives_the_steps_of_the_grid_again(numbers):
    scheduler = EtaDDIMScheduler(**STABLE_DIFFUSION | {"set_alpha_to_one": True})
    scheduler.set_timesteps(10)
    for number in numbers:
        scheduler.num_inference_steps = number
    assert [scheduler.previous_timestep(t) for t in scheduler.timesteps] == [*scheduler.timesteps[1:].tolist(), -1]
    assert restored(scheduler) < 1e-5


def test_what_a_write_leaves_as_it_was_stays_the_same_object():
    """So that it can be written further, keeps its gradient, and its dtype."""
    theirs, ours = DDIMScheduler(**STABLE_DIFFUSION), EtaDDIMScheduler(**STABLE_DIFFUSION)
    for scheduler in (theirs, ours):
        bars, scheduler.final_alpha_cumprod = scheduler.alphas_cumprod, torch.tensor(1.0)
        bars *= 0.9
    x, noise, t = torch.ones(1, 4), torch.full((1, 4), 2.0), torch.tensor([300])
    assert (ours.add_noise(x, noise, t) - theirs.add_noise(x, noise, t)).abs().max() < 1e-6

    ours.alphas_cumprod = torch.nn.Parameter(ours.alphas_cumprod.double())
    ours.final_alpha_cumprod = torch.tensor(0.99)
    assert ours.alphas_cumprod.dtype == torch.float64
    assert ours.add_noise(x, noise, t).requires_grad
    ours.betas = 0.9 * ours.betas
    assert ours.alphas_cumprod.dtype == torch.float64  # of the new values as well
    assert abs(ours.alphas_cumprod[-1] / (1 - ours.betas.double()).prod() - 1) < 1e-4


# ------------------------------------------------------------------------------------------------------------- reading


def relative_error(scheduler, t=500):
    """Of each public tensor to what follows from the rows of the table, read before anything else uses them."""
    read = {name: getattr(scheduler, name) for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod")}
    read["timesteps"] = scheduler.timesteps
    row, bars = scheduler._table.row(t), read["alphas_cumprod"].double()
    errors = {
        "alphas_cumprod": bars[t] / row.alpha_t**2 - 1,
        "alphas": read["alphas"][t] / (bars[t] / bars[t - 1]) - 1,
        "betas": read["betas"][t] + read["alphas"][t] - 1,
        "final_alpha_cumprod": read["final_alpha_cumprod"] / scheduler._table.row(0).alpha_s ** 2 - 1,
        "timesteps": scheduler.previous_timestep(scheduler.timesteps[0]) - scheduler.timesteps[1],
        "snr": compute_snr(scheduler, torch.tensor([t])) / (row.alpha_t / row.sigma_t) ** 2 - 1,
    }
    return {name: abs(float(error)) for name, error in errors.items()}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_read_first_after_a_write_follows_from_it(write):
    for first in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "timesteps"):
        scheduler = EtaDDIMScheduler(**STABLE_DIFFUSION)
        write(scheduler)
        tensor = getattr(scheduler, first).clone()
        assert max(relative_error(scheduler, t=50).values()) < 1e-4
        assert torch.equal(getattr(scheduler, first), tensor)


def test_reading_sees_each_write_in_place_and_of_the_config():
    scheduler = EtaDDIMScheduler()
    fresh = copy.deepcopy(scheduler)
    scheduler.betas.mul_(0.5)
    assert abs(scheduler.alphas_cumprod[999].log() / (fresh.alphas_cumprod[999].log() / 2) - 1) < 0.01
    assert (scheduler.alphas - 1 + scheduler.betas).abs().max() < 1e-7
    scheduler.config.beta_end = 0.05
    assert abs(scheduler.betas[-1] - 0.05) < 1e-7
    scheduler.config.set_alpha_to_one = False
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]
    inverse = EtaDDIMInverseScheduler(set_alpha_to_one=False)
    inverse.betas.mul_(0.5)
    assert inverse.initial_alpha_cumprod == inverse.alphas_cumprod[0] > 0.9999
    scheduler.timesteps[0] = 998  # where no grid was set, a written one is one
    assert scheduler.num_inference_steps == 1000


def test_refused_values_can_be_read_and_mended():
    scheduler = EtaDDIMScheduler()
    bars = scheduler.alphas_cumprod.clone()
    scheduler.alphas_cumprod[500] = 2.0
    for _ in range(2):
        assert scheduler.alphas_cumprod[500] == 2.0
    for k in range(1000):  # element by element: what stands between is refused, and not used
        scheduler.alphas_cumprod[k] = bars[k] ** 2
    assert max(relative_error(scheduler).values()) < 1e-4


def test_compiled_code_reads_without_a_break():
    torch._dynamo.reset()
    scheduler = EtaDDIMScheduler()
    read = torch.compile(
        lambda t: scheduler.alphas_cumprod[t] + scheduler.timesteps[0], fullgraph=True, backend="eager"
    )
    for steps in (4, 5):
        scheduler.set_timesteps(steps)
        expected = scheduler.alphas_cumprod[7] + scheduler.timesteps[0]
        assert (read(torch.tensor([7])) - expected).abs().max() < 1e-5


def test_written_parameter_gets_a_gradient_from_add_noise():
    gradients, samples = [], torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    for cls in (DDIMScheduler, EtaDDIMScheduler):
        scheduler = cls()
        scheduler.alphas_cumprod = bars = torch.nn.Parameter(scheduler.alphas_cumprod.clone())
        assert scheduler.alphas_cumprod is bars
        for use in (scheduler.add_noise, scheduler.add_noise, scheduler.get_velocity):
            use(*samples, torch.tensor([3, 500, 900])).square().sum().backward()
        gradients.append(bars.grad)
    assert gradients[0][[3, 500, 900]].abs().min() > 0
    assert (gradients[1] / gradients[0])[[3, 500, 900]].sub(1).abs().max() < 1e-3
    assert gradients[1].count_nonzero() == 3
    with torch.no_grad():  # as an optimizer
        bars.mul_(0.9)
    assert abs(scheduler.add_noise(torch.ones(1), torch.zeros(1), torch.tensor([0])).item() ** 2 - 0.9 * 0.9999) < 1e-6


@pytest.mark.parametrize("timesteps", [torch.tensor(3), torch.tensor([3]), torch.tensor([3, 4, 5])])
def test_sample_without_dimensions(timesteps):
    x, z = torch.tensor(1.0), torch.tensor(2.0)
    for name in ("add_noise", "get_velocity"):
        theirs, ours = (getattr(cls(), name)(x, z, timesteps) for cls in (DDIMScheduler, EtaDDIMScheduler))
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    for eta in (0.0, 0.5):
        assert scheduler.step(x, 900, z, eta=eta, generator=torch.Generator()).prev_sample.ndim == 0
    with pytest.raises(ValueError, match="one timestep or one for each of the 1 samples, but holds 2"):
        scheduler.step(x, torch.tensor([900, 800]), z)


# ---------------------------------------------------------------------------------------------------------- subclasses


class WithoutSuper(EtaDDIMScheduler):
    """Sets its tensors as diffusers' schedulers do in their constructors."""

    @register_to_config
    def __init__(self, num_train_timesteps=1000):
        self.betas = torch.linspace(1e-4, 0.02, num_train_timesteps)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.final_alpha_cumprod = torch.tensor(1.0)
        self.num_inference_steps = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)


class WithSuper(EtaDDIMScheduler):
    @register_to_config
    def __init__(self, num_train_timesteps=1000):
        super().__init__(num_train_timesteps)
        self.betas = torch.linspace(1e-4, 0.03, num_train_timesteps)


def test_subclass_that_does_not_call_our_constructor_is_told_to():
    scheduler = WithoutSuper()
    assert (scheduler.alphas + scheduler.betas == 1).all()
    assert not hasattr(scheduler, "nothing")
    x = torch.ones(1, 1)
    for use in (
        lambda: scheduler.set_timesteps(5),
        lambda: scheduler.add_noise(x, x, torch.tensor([3])),
        lambda: scheduler.previous_timestep(3),
    ):
        with pytest.raises(
            RuntimeError, match=r"`WithoutSuper.__init__` must call `super\(\).__init__`.*or write `betas`"
        ):
            use()
    assert max(relative_error(WithSuper()).values()) < 1e-4


@pytest.mark.parametrize("name", ["_get_variance", "previous_timestep"])
@pytest.mark.parametrize("base", [EtaDDIMScheduler, EtaDDIMInverseScheduler])
def test_override_that_would_reach_no_step_is_refused(base, name):
    with pytest.raises(TypeError, match=f"`{name}` of Mine would change no step"):
        type("Mine", (base,), {name: lambda self, *args: 0})
    with pytest.raises(TypeError, match=f"`{name}` of {base.__name__} would change no step"):
        setattr(base(), name, lambda *args: 0)


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (EtaDDIMScheduler, "timesteps"),
        (EtaDDIMScheduler, "final_alpha_cumprod"),
        (EtaDDIMInverseScheduler, "betas"),
        (EtaFlowMatchScheduler, "sigmas"),
    ],
)
def test_property_in_the_place_of_an_attribute_is_refused(base, name):
    with pytest.raises(TypeError, match=f"`{name}` of Mine would change no step"):
        type("Mine", (base,), {name: property(lambda self: torch.ones(1))})


def test_config_is_printed_as_it_would_be_saved():
    scheduler = EtaDDIMScheduler()
    scheduler.config.clip_sample_range = np.float32(0.5)
    scheduler.config.trained_betas = torch.full((1000,), 0.01)
    assert '"clip_sample_range": 0.5' in repr(scheduler)
    scheduler.config.clip_sample_range = -3.0
    assert '"clip_sample_range": -3.0' in repr(scheduler)  # to be looked at and mended
