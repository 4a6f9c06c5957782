"""`EtaDDIMScheduler` is a `diffusers.DDIMScheduler`, and none of its arithmetic runs."""

import inspect

import numpy as np
import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler

from ddim_scheduler import EtaDDIMInverseScheduler, EtaDDIMScheduler


@pytest.mark.parametrize(
    ("ours", "theirs"), [(EtaDDIMScheduler, DDIMScheduler), (EtaDDIMInverseScheduler, DDIMInverseScheduler)]
)
def test_every_method_of_the_parent_is_ours(ours, theirs):
    """What the class of diffusers defines itself is replaced; what it inherits knows nothing of noise or steps."""
    assert isinstance(ours(), theirs)
    methods = {name: value for name, value in vars(theirs).items() if inspect.isroutine(value)}
    assert {"__init__", "set_timesteps", "step", "__len__"} <= methods.keys()
    for name in methods:
        owner = next(cls for cls in ours.__mro__ if name in vars(cls))
        assert not owner.__module__.startswith("diffusers"), name
        assert issubclass(ours, owner)
    for cls in theirs.__mro__[1:-1]:
        for name, value in vars(cls).items():
            if inspect.isroutine(value) and name not in methods:
                assert not {"alphas_cumprod", "betas", "timesteps"} & set(
                    value.__code__.co_names if hasattr(value, "__code__") else ()
                ), name


def test_no_method_of_the_parents_runs(monkeypatch):
    for theirs in (DDIMScheduler, DDIMInverseScheduler):
        for name, value in list(vars(theirs).items()):
            if inspect.isroutine(value):

                def forbidden(*args, name=name, **kwargs):
                    raise AssertionError(f"{name} of the parent runs")

                monkeypatch.setattr(theirs, name, forbidden)
    x = torch.randn(2, 1, 4, 4)
    t = torch.tensor([900, 100])
    for scheduler in (
        EtaDDIMScheduler(thresholding=True),
        EtaDDIMInverseScheduler(),
        EtaDDIMScheduler.from_config(EtaDDIMScheduler().config),
    ):
        scheduler.set_timesteps(10)
        scheduler.step(x, 900, x)
        scheduler.transition(x, t, x, eta=0.5)
        if type(scheduler) is EtaDDIMScheduler:
            scheduler.batch_step_no_noise(x, t, x)
        scheduler.add_noise(x, x, t)
        scheduler.get_velocity(x, x, t)
        scheduler.scale_model_input(x, 900)
        scheduler._get_variance(900, 800)
        scheduler._threshold_sample(x)
        assert len(scheduler) == 1000


def test_public_attributes_of_the_parent_are_there():
    theirs, ours = DDIMScheduler(), EtaDDIMScheduler()
    for name, value in vars(theirs).items():
        if not name.startswith("_"):
            assert type(getattr(ours, name)) is type(value), name
    assert theirs.config.keys() <= ours.config.keys()


@pytest.mark.parametrize("timesteps", [(900, 800), (999, 0), (0, -1), (20, -19)])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_variance_as_others_call_it(timesteps, set_alpha_to_one):
    """Forks of DDPO's step take the variance between any two timesteps from the private method."""
    theirs, ours = (cls(set_alpha_to_one=set_alpha_to_one) for cls in (DDIMScheduler, EtaDDIMScheduler))
    assert (ours._get_variance(*timesteps) - theirs._get_variance(*timesteps)).abs() < 1e-6
    assert ours._get_variance(*map(torch.tensor, timesteps)).ndim == 0


# ------------------------------------------------------------------------- what diffusers' class takes, ours takes too


@pytest.mark.parametrize("method", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("shapes", [(1, 1, 5), (1, 5, 5), (5, 1, 1), (1, 5, 1), (5, 5, 1), (1, 1, 1)])
def test_noise_broadcasts_as_in_diffusers(method, shapes):
    images, noises, number = shapes
    generator = torch.Generator().manual_seed(0)
    x, z = (torch.randn(n, 3, 4, 4, generator=generator) for n in (images, noises))
    t = torch.randint(1000, (number,), generator=generator)
    theirs, ours = (getattr(cls(), method)(x, z, t) for cls in (DDIMScheduler, EtaDDIMScheduler))
    assert ours.shape == theirs.shape == (max(shapes), 3, 4, 4)
    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    "settings", [{}, {"clip_sample": False}, {"thresholding": True}, {"use_clipped_model_output": True}]
)
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("batched", ["model_output", "sample", "both", "noise"])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_vmap(settings, prediction_type, batched, eta):
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type, **settings)
    scheduler.set_timesteps(10)
    outputs, samples, noises = torch.randn(3, 4, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def step(output, sample, noise):
        return scheduler.step(output, 500, sample, eta=eta, variance_noise=noise).prev_sample

    in_dims = [0 if batched in (name, "both") else None for name in ("model_output", "sample", "noise")]
    stacked = zip((outputs, samples, noises), in_dims, strict=True)
    result = torch.vmap(step, in_dims=tuple(in_dims))(*(x if dim == 0 else x[0] for x, dim in stacked))
    assert len(result) == 4
    for k in range(4):
        single = (x[k if dim == 0 else 0] for x, dim in zip((outputs, samples, noises), in_dims, strict=True))
        assert (result[k] - step(*single)).abs().max() < 1e-6


def test_vmap_of_training():
    scheduler = EtaDDIMScheduler()
    x, z = torch.randn(2, 4, 2, 3)
    t = torch.tensor([3, 700])
    for method in (scheduler.add_noise, scheduler.get_velocity):
        result = torch.vmap(method, in_dims=(None, 0, None))(x[0], z, t)
        assert (result[2] - method(x[0], z[2], t)).abs().max() < 1e-6


# -------------------------------------------------------------------------------------------- what a config decides


@pytest.mark.parametrize(
    ("config", "clips"),
    [
        ({"beta_start": 1e-4}, True),
        ({"beta_start": 1e-4, "tensor_format": "pt"}, True),
        ({"beta_start": 1e-4, "_class_name": "OurOwnScheduler"}, True),
        ({"beta_start": 1e-4, "_class_name": "DDPMScheduler"}, True),
        ({"beta_start": 1e-4, "_class_name": "EulerDiscreteScheduler"}, False),
        ({"beta_start": 1e-4, "_class_name": "PNDMScheduler", "skip_prk_steps": True}, False),
        (EulerDiscreteScheduler().config, False),
        (DDPMScheduler(clip_sample=False).config, False),
        ({"beta_start": 1e-4, "_class_name": "EulerDiscreteScheduler", "clip_sample": True}, True),
        ({"beta_start": 1e-4, "clip_sample": None}, False),
    ],
)
def test_clipping_does_not_hang_on_unrelated_keys(config, clips, monkeypatch):
    lines = []
    monkeypatch.setattr("ddim_scheduler.foreign_configs.logger.info", lines.append)
    assert EtaDDIMScheduler.from_config(config).config.clip_sample is clips
    assert len(lines) == ("clip_sample" not in config)
    assert all(("is clipped" in line) == clips for line in lines)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"predict_epsilon": False}, "sample"),
        ({"predict_epsilon": True}, "epsilon"),
        ({"predict_epsilon": False, "prediction_type": "v_prediction"}, "v_prediction"),
        ({"predict_epsilon": False, "_class_name": "DDPMScheduler"}, "sample"),
    ],
)
def test_configs_of_older_versions_say_what_the_model_predicts(entries, expected):
    config = {"beta_start": 1e-4, "beta_end": 0.02, **entries}
    assert EtaDDIMScheduler.from_config(config).config.prediction_type == expected
    assert EtaDDIMScheduler.from_config(config, prediction_type="epsilon").config.prediction_type == "epsilon"
    assert EtaDDIMScheduler.from_config(config, predict_epsilon=False).config.prediction_type == "sample"


def test_numbers_of_numpy_null_and_betas_alone(tmp_path):
    scheduler = EtaDDIMScheduler(
        num_train_timesteps=np.int64(100), beta_end=np.float32(0.02), clip_sample=np.bool_(False), thresholding=None
    )
    types = {
        name: type(scheduler.config[name])
        for name in ("num_train_timesteps", "beta_end", "clip_sample", "thresholding")
    }
    assert types == {"num_train_timesteps": int, "beta_end": float, "clip_sample": bool, "thresholding": bool}
    scheduler.save_pretrained(tmp_path)
    assert EtaDDIMScheduler.from_pretrained(tmp_path).config.clip_sample is False

    betas = np.linspace(1e-3, 0.2, 100)
    for scheduler in (
        EtaDDIMScheduler(trained_betas=betas),
        EtaDDIMScheduler.from_config({"trained_betas": betas.tolist()}),
    ):
        assert scheduler.config.num_train_timesteps == len(scheduler.alphas_cumprod) == 100
    assert EtaDDIMScheduler.from_config(scheduler.config).config.num_train_timesteps == 100
    with pytest.raises(ValueError, match=r"`trained_betas` must hold `num_train_timesteps` = 50 values"):
        EtaDDIMScheduler(num_train_timesteps=50, trained_betas=betas)


def test_vmap_over_timesteps_and_eta():
    scheduler = EtaDDIMScheduler()
    scheduler.set_timesteps(10)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    t, eta = torch.tensor([100, 500, 900]), torch.tensor([0.0, 0.4, 1.0])
    noisy = torch.vmap(lambda a, k: scheduler.add_noise(a[None], a[None], k[None])[0])(x, t)
    assert (noisy - scheduler.add_noise(x, x, t)).abs().max() < 1e-6
    moved = torch.vmap(lambda a, k: scheduler.step(a[None], k, a[None]).prev_sample[0])(x, t)
    assert (moved - scheduler.step(x, t, x).prev_sample).abs().max() < 1e-6
    drawn = torch.vmap(lambda e: scheduler.step(x, 500, x, eta=e, variance_noise=x).prev_sample)(eta)
    for k in range(3):
        assert (drawn[k] - scheduler.step(x, 500, x, eta=eta[k], variance_noise=x).prev_sample).abs().max() < 1e-6
