"""A condition in the UNet's input: sampling, guidance, inversion and training of pairs."""

import PIL.Image
import pytest
import torch

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler
from ddim_scheduler.image_files import scale_to

SETTINGS = {"prediction_type": "v_prediction", "clip_sample": False, "timestep_spacing": "trailing"}


@pytest.fixture
def conditioned(small_unet):
    """A pipeline of gray 8x8 images made from colour ones, and the inputs that its UNet was given."""

    def build(**settings):
        unet = small_unet(in_channels=4, out_channels=1, **settings)
        pipe = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(**SETTINGS))
        pipe.set_progress_bar_config(disable=True)
        inputs = []
        unet.register_forward_pre_hook(lambda _, given: inputs.append(given))
        return pipe, inputs

    return build


def pictures(number, channels=3, size=8):
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1))


def test_condition_is_the_last_channels_of_each_call(conditioned):
    pipe, inputs = conditioned()
    assert (pipe.image_channels, pipe.condition_channels) == (1, 3)
    condition = pictures(2)
    settings = {"num_inference_steps": 3, "seed": 0, "output_type": "pt"}
    images = pipe(condition=condition, **settings).images
    assert images.shape == (2, 1, 8, 8)
    assert len(inputs) == 3
    for sample, *_ in inputs:
        assert torch.equal(sample[:, 1:], 2 * condition - 1)

    def by_hand(sample):  # DDIM's steps of a network that sees the condition
        pipe.scheduler.set_timesteps(3)
        for t in pipe.scheduler.timesteps:
            output = pipe.unet(torch.cat([sample, 2 * condition - 1], dim=1), t).sample
            sample = pipe.scheduler.step(output, t, sample).prev_sample
        return (sample / 2 + 0.5).clamp(0, 1)

    latents = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = by_hand(latents)
    assert (
        pipe(condition=condition, latents=latents, num_inference_steps=3, output_type="pt").images - expected
    ).abs().max() < 1e-6
    # a picture is the tensor, and one serves all
    array = (condition * 255).round()
    pil = [PIL.Image.fromarray(a.byte().permute(1, 2, 0).numpy()) for a in array]
    of_pil, of_tensor = (pipe(condition=c, **settings).images for c in (pil, array / 255))
    assert (of_pil - of_tensor).abs().max() < 1e-6
    assert torch.equal(pipe(2, condition=condition[:1], **settings).images[0], images[0])


def test_small_condition_is_scaled_as_in_training(conditioned):
    pipe, inputs = conditioned()
    small = pictures(1, size=2)
    pipe(condition=small, num_inference_steps=1, seed=0)
    assert (inputs[0][0][0, 1:] - (2 * scale_to(small[0], 8, 8) - 1)).abs().max() < 1e-6


@pytest.mark.parametrize("num_classes", [None, 3])
def test_guidance_leaves_condition_and_class_out_in_one_call(conditioned, num_classes):
    pipe, inputs = conditioned(num_class_embeds=num_classes)
    labels = None if num_classes is None else [0]
    condition = pictures(1)
    latents = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    settings = {"num_inference_steps": 1, "latents": latents, "class_labels": labels, "output_type": "latent"}
    guided = pipe(condition=condition, guidance_scale=2.5, **settings).images
    assert len(inputs) == 1
    sample, t, given_labels = inputs[0]
    assert torch.equal(sample[1, 1:], torch.zeros(3, 8, 8))
    assert given_labels is None if num_classes is None else given_labels.tolist() == [0, 2]
    with torch.no_grad():
        outputs = [
            pipe.unet(torch.cat([latents, c], dim=1), t, None if labels is None else torch.tensor([label])).sample
            for c, label in ((2 * condition - 1, 0), (0 * condition, 2))
        ]
    output = outputs[1] + 2.5 * (outputs[0] - outputs[1])
    assert (guided - pipe.scheduler.step(output, t, latents).prev_sample).abs().max() < 1e-5


def test_inversion_and_interpolation_with_conditions(conditioned):
    pipe, _ = conditioned()
    images, condition = pictures(2, 1), pictures(2, 3, 4)
    with torch.no_grad():  # a contraction, so that the fixed point is found
        pipe.unet.conv_out.weight.mul_(0.1)
    found = pipe.invert(images, 4, condition=condition)
    back = pipe(latents=found.latents, condition=condition, num_inference_steps=4, output_type="pt").images
    assert (back - images).abs().max() < 1e-4
    other = pipe(latents=found.latents, condition=1 - condition, num_inference_steps=4, output_type="pt").images
    assert (other - images).abs().max() > 1e-3
    array = images.permute(0, 2, 3, 1).numpy()
    ends = pipe.interpolate(array[:1], array[1:], 3, 4, condition=condition[:1], output_type="pt").images
    assert (ends[0] - images[0]).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`condition` must be given .* it takes 4, returns 1, and `condition` is None"),
        ({"condition": pictures(1, 1)}, "`condition` must hold at least one image of 3 channels"),
        ({"condition": pictures(3), "batch_size": 2}, "`condition` must hold one image or `batch_size` = 2, not 3"),
        (
            {"condition": pictures(1)[..., :4]},
            r"`condition` must have the proportions of \(8, 8\), but its size is \(8, 4\)",
        ),
        ({"condition": 3 * pictures(1)}, r"`condition` must be in \[0, 1\]"),
        ({"condition": "picture.png"}, "`condition` must be a PIL image"),
    ],
)
def test_wrong_condition_is_refused(conditioned, arguments, message):
    pipe, inputs = conditioned()
    with pytest.raises((TypeError, ValueError), match=message):
        pipe(**arguments)
    assert not inputs


def test_condition_of_a_model_without_is_refused(pipeline):
    with pytest.raises(ValueError, match="it takes 1, returns 1, and `condition` is given"):
        pipeline(condition=pictures(1, 1))
    with pytest.raises(ValueError, match=r"`guidance_scale` is 2, but the UNet has no .* and no condition to guide to"):
        pipeline(guidance_scale=2)
