"""A condition in the UNet's input: sampling, guidance, inversion and training of pairs."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate.state import PartialState

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, fitting, generation
from ddim_scheduler.image_files import scale_to
from ddim_scheduler.training import ImageDataset, find_folder_images, parse_args, with_condition

from training import train, write_classifier

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import policy_gradient
import sample_grid

import generate
import super_resolution

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


@pytest.fixture
def saved(conditioned, tmp_path):
    """The folder of such a pipeline, one of colour pictures of other sizes, and these as the pipeline takes them."""
    pipe, _ = conditioned()
    pipe.save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(256, size=(3, 4, 4, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    for k, array in enumerate(pixels):
        wide = np.pad(array.repeat(2 + k, 0).repeat(2 + k, 1), ((0, 0), (2 + k,) * 2, (0, 0)), "edge")  # is cut
        PIL.Image.fromarray(wide).save(tmp_path / "pictures" / f"{k}.png")
    return tmp_path / "model", tmp_path / "pictures", pixels


def test_scripts_sample_from_a_folder_of_conditions(saved, tmp_path, monkeypatch):
    """Which take turns: the pictures are the pipeline's, without guidance and with it."""
    PartialState._shared_state.clear()
    model, pictures, pixels = saved
    settings = {"num_inference_steps": 2, "seed": 0, "output_type": "np"}
    options = [str(model), "--num_images", "4", "--num_inference_steps", "2", "--condition_dir", str(pictures)]
    reader = generation.read_conditions(pictures, EtaDDIMPipeline.from_pretrained(model))
    for read, array in zip(reader, pixels, strict=True):  # without their sides
        expected = torch.from_numpy(array.repeat(2, 0).repeat(2, 1)).permute(2, 0, 1)
        assert (read.float() - expected).abs().mean() < 25
    condition = generation.in_turn(reader, range(4))
    assert torch.equal(condition[3], condition[0])
    for scale in (1.0, 3.0):
        expected = EtaDDIMPipeline.from_pretrained(model)(condition=condition, guidance_scale=scale, **settings).images
        guidance = ["--guidance_scale", str(scale)]
        generate.main([*options, *guidance, "--output_dir", str(tmp_path / f"images {scale}")])
        files = sorted((tmp_path / f"images {scale}").glob("*.png"))
        made = np.stack([np.asarray(PIL.Image.open(file)) for file in files])
        assert np.abs(made / 255 - expected[..., 0]).max() <= 0.51 / 255
        grid = sample_grid.main(
            [*options, *guidance, "--scale", "1", "--device", "cpu", "--output", str(tmp_path / "g.png")]
        )
        rows = [np.concatenate(list(row), axis=1) for row in (expected[:2], expected[2:])]
        assert np.abs(np.asarray(PIL.Image.open(grid)) / 255 - np.concatenate(rows)[..., 0]).max() <= 0.51 / 255
    PIL.Image.new("RGB", (8, 8)).save(pictures / "0.png")
    with pytest.raises(ValueError, match=r"^`conditions` is "):
        generate.main([*options, "--output_dir", str(tmp_path / "images 1.0")])


def test_scripts_refuse_wrong_conditions(saved, pipeline, tmp_path, capsys):
    model, pictures, _ = saved
    pipeline.save_pretrained(tmp_path / "other")
    np.save(pictures / "a.npy", np.zeros((8, 8, 2), dtype=np.uint8))
    (tmp_path / "empty").mkdir()
    for script in (generate, sample_grid):
        PartialState._shared_state.clear()
        common = ["--num_images", "4", "--output" + "_dir" * (script is generate), str(tmp_path / "new" / "a.png")]
        for arguments, message in (
            ([str(model)], "`condition_dir` is needed: the model of .* from pictures of 3 channels"),
            ([str(tmp_path / "other"), "--condition_dir", str(pictures)], "the model of .*other has no condition"),
            ([str(model), "--condition_dir", str(pictures)], "The condition .*a.npy has 2 channels, not 3"),
            ([str(model), "--condition_dir", str(tmp_path / "empty")], "`condition_dir` holds no pictures: .*empty"),
            ([str(model), "--condition_dir", str(tmp_path / "x")], "x is no folder and no zip archive"),
        ):
            with pytest.raises(ValueError, match=message):
                script.main([*arguments, *common])
    with pytest.raises(SystemExit):
        policy_gradient.main([str(model), "--output_dir", str(tmp_path / "new")])
    assert "pipeline must have no classes or condition" in capsys.readouterr().err
    assert not list((tmp_path / "new").glob("*"))


# ------------------------------------------------------------------------------------------------------------ training


@pytest.fixture
def pairs(tmp_path):
    """Flat images of a gray level, and smaller conditions with the opposite one, which is all that tells it."""
    levels = np.random.default_rng(0).integers(30, 225, size=48)
    for k, level in enumerate(levels):
        for folder, size, value in (("images", 16, level), ("conditions", 4, 255 - level)):
            path = tmp_path / folder / str(k % 2) / f"{k}.{'png' if folder == 'images' else 'bmp'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.full((size, size), value, dtype=np.uint8)).save(path)
    return tmp_path / "images", tmp_path / "conditions"


def test_training_of_pairs(pairs, tmp_path):
    """Saved, loaded and resumed, the model makes what the condition says."""
    images, conditions = pairs
    common = ("--train_data_dir", images, "--condition_dir", conditions, "--logger", "none", "--validation_share", 0.1)
    common += ("--prediction_type", "sample", "--train_batch_size", 16, "--learning_rate", 5e-3, "--label_dropout", 0)
    common += ("--checkpointing_steps", 40, "--max_train_steps", 60, "--output_dir", tmp_path / "model")
    common += ("--lr_scheduler", "constant", "--resolution", 8)
    train(*common)
    shutil.rmtree(tmp_path / "model" / "checkpoint-60")
    expected = (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train(*common, "--resume_from_checkpoint", "latest", "--fit_steps", 5)
    assert (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == expected

    pipe = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    assert [*pipe.scheduler.config.fitted_tables] == ["5"]
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.image_channels, pipe.condition_channels) == (1, 1)
    wanted = torch.tensor([0.2, 0.5, 0.8])
    condition = (1 - wanted).view(3, 1, 1, 1).expand(-1, 1, 4, 4)
    latents = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    made = pipe(condition=condition, latents=latents, num_inference_steps=5, output_type="pt").images.mean((1, 2, 3))
    slopes = made.diff() / wanted.diff()  # 0 if the same noise makes the same image of any condition
    assert slopes.min() > 0.2
    assert slopes.mean() > 0.5
    lines = [json.loads(line) for line in (tmp_path / "model" / "logs" / "losses.jsonl").read_text().splitlines()]
    assert any("validation_loss" in line for line in lines)

    for k in range(48):
        PIL.Image.new("RGB", (4, 4)).save(conditions / str(k % 2) / f"{k}.bmp")
    with pytest.raises(ValueError, match=r"`condition_channels` is 3, but 1 in the run of .*checkpoint-60"):
        train(*common, "--resume_from_checkpoint", "latest")


def test_pictures_that_belong_to_no_image_are_counted(pairs):
    images, conditions = pairs
    for name in ("more.png", "and_more.png"):
        PIL.Image.new("L", (4, 4)).save(conditions / name)
    shutil.copy(images / "0" / "0.png", images / "0" / "0.PNG")  # two images of one condition
    found = find_folder_images(images, condition_dir=conditions)
    assert len(found.conditions) == 49
    assert ImageDataset(*found, resolution=[8, 8]).remarks() == [
        "left out: 2 conditions of no image",
        "conditions: 49 enlarged",
    ]


def test_numbers_of_classes_as_conditions_are_remarked_upon(pairs):
    """They are a map as it comes from segmentation, in which a network sees next to nothing."""
    images, conditions = pairs
    for number, path in enumerate(sorted(conditions.rglob("*.bmp"))):
        PIL.Image.new("L", (4, 4), number % 4).save(path)
    remarks = ImageDataset(*find_folder_images(images, condition_dir=conditions), resolution=[8, 8]).remarks()
    assert remarks == [
        "conditions: 48 enlarged",
        "conditions: 48 almost black, up to 1.2% of white: spread numbers of classes over the whole range",
    ]


def test_pairs_are_evaluated_and_fitted(pairs, tmp_path):
    """With conditions in turn, so many of which were not seen before."""
    common = ("--train_data_dir", pairs[0], "--condition_dir", pairs[1], "--output_dir", tmp_path / "model")
    common += ("--ddpm_num_steps", 8, "--max_train_steps", 1, "--validation_share", 0.1, "--logger", "none")
    common += ("--eval_every", 1, "--eval_num_images", 6, "--eval_features", "digits", "--fit_steps", 2)
    train(*common, "--eval_weights", write_classifier(tmp_path / "classifier.safetensors"))
    lines = (tmp_path / "model" / "logs" / "losses.jsonl").read_text()
    assert "eval/kernel" in lines
    assert "validation_loss" in lines
    scheduler = EtaDDIMPipeline.from_pretrained(tmp_path / "model").scheduler
    assert scheduler.config.timestep_spacing == "fitted"
    assert [*scheduler.config.fitted_tables] == ["2"]


def test_fit_sees_the_conditions(saved, tmp_path):
    model, pictures, _ = saved
    options = ["--steps", "2", "--teacher_steps", "4", "--seeds", "4"]
    with pytest.raises(ValueError, match="`condition_dir` is needed"):
        fitting.main([str(model), *options])
    fitting.main([str(model), *options, "--condition_dir", str(pictures), "--output", str(tmp_path / "fitted")])
    assert EtaDDIMPipeline.from_pretrained(tmp_path / "fitted").scheduler.config.timestep_spacing == "fitted"


def test_pairs_are_cropped_and_mirrored_together(tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(6, 8, 20, 3), dtype=np.uint8)
    for k, pixels in enumerate(noise):
        for folder, array in (("images", pixels), ("conditions", 255 - pixels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            PIL.Image.fromarray(array).save(tmp_path / folder / f"{k}.png")
    found = find_folder_images(tmp_path / "images", condition_dir=tmp_path / "conditions")
    for cache in (1.0, 0.0):
        dataset = ImageDataset(*found, resolution=[8, 8], random_flip=True, image_cache_gb=cache)
        for epoch in range(3):
            dataset.set_epoch(epoch)
            for image, _, condition in map(dataset.__getitem__, range(6)):
                assert (image + condition).abs().max() < 1e-6


def test_dropped_conditions_are_0():
    condition = torch.rand(3, 2, 4, 4) + 0.1
    images = torch.rand(3, 1, 4, 4)
    given = with_condition(images, [condition], torch.tensor([False, True, False]))
    assert torch.equal(given[:, :1], images)
    assert torch.equal(given[[0, 2], 1:], condition[[0, 2]])
    assert not given[1, 1:].any()
    assert with_condition(images, [], torch.tensor([True] * 3)) is images


def test_pairs_that_do_not_fit_are_refused(pairs, tmp_path, capsys):
    images, conditions = pairs
    (conditions / "0" / "2.bmp").rename(conditions / "0" / "2.png")  # another ending is no matter
    (conditions / "0" / "0.bmp").rename(conditions / "0" / "zero.bmp")
    common = ("--train_data_dir", images, "--output_dir", tmp_path / "model")
    with pytest.raises(ValueError, match=r"must hold one picture of the same name .* of 1 of 48 .*0\.png has 0"):
        train(*common, "--condition_dir", conditions)
    PIL.Image.new("L", (4, 8)).save(conditions / "0" / "0.bmp")
    with pytest.raises(ValueError, match=r"The condition .*0\.bmp has other proportions than .*0\.png"):
        train(*common, "--condition_dir", conditions)
    for arguments, message in (
        (("--dataset_name", "x", "--condition_dir", conditions), "--condition_dir belongs to the images of"),
        (("--train_data_dir", images, "--condition_dir", "nowhere"), "--condition_dir is no folder and no zip archive"),
    ):
        with pytest.raises(SystemExit):
            parse_args([*map(str, arguments)])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_network_without_a_condition_is_refused(pairs, small_unet, tmp_path):
    small_unet(in_channels=1, out_channels=1).save_config(tmp_path / "config")
    common = ("--train_data_dir", pairs[0], "--condition_dir", pairs[1], "--output_dir", tmp_path / "model")
    with pytest.raises(ValueError, match="takes 1 channels, but the images have 1 and their conditions 1"):
        train(*common, "--model_config_name_or_path", tmp_path / "config")


def test_super_resolution_example(small_unet, tmp_path, capsys):
    """Shrinks by means, and measures against the originals; bicubic's error is as if computed by hand."""
    originals = np.random.default_rng(0).integers(256, size=(5, 8, 8), dtype=np.uint8)
    for k, pixels in enumerate(originals):
        (tmp_path / "images" / str(k)).mkdir(parents=True)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / str(k) / "a.png")
    super_resolution.main(["shrink", str(tmp_path / "images"), str(tmp_path / "small"), "--factor", "4"])
    small = np.stack([np.asarray(PIL.Image.open(tmp_path / "small" / str(k) / "a.png")) for k in range(5)])
    assert np.abs(small - originals.reshape(5, 2, 4, 2, 4).mean((2, 4))).max() <= 0.5
    unet = small_unet(in_channels=2, out_channels=1)
    EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(**SETTINGS)).save_pretrained(tmp_path / "model")
    arguments = ["measure", *(str(tmp_path / name) for name in ("model", "small", "images")), "--device", "cpu"]
    arguments += ["--samples", "2", "--num_inference_steps", "2", "--output", str(tmp_path / "new" / "rows.png")]
    errors = super_resolution.main(arguments)
    bicubic = torch.nn.functional.interpolate(torch.from_numpy(small)[:, None] / 255, (8, 8), mode="bicubic")
    expected = (bicubic.clamp(0, 1)[:, 0] - torch.from_numpy(originals) / 255).square().mean().sqrt()
    assert abs(errors["bicubic"] - expected) < 1e-5
    assert errors["mean of 2"] <= errors["one sample"] * 1.01
    assert PIL.Image.open(tmp_path / "new" / "rows.png").size == (5 * 8, 4 * 8)
    assert "root mean square error" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        super_resolution.main([*arguments, "--samples", "0"])
    assert "--samples must be at least 1, but is 0" in capsys.readouterr().err
