"""The training script: it learns, it saves what loads elsewhere, it resumes exactly, it refuses bad input early."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator, DistributedType
from diffusers import UNet2DModel
from safetensors.torch import load_file

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, evaluation, image_generators, training
from ddim_scheduler.scheduling_ddim import PREDICTION_TYPES
from ddim_scheduler.training import (
    ImageDataset,
    find_dataset_images,
    loss_weights,
    mean_losses,
    parse_args,
    train_unconditional,
    training_batch,
    unet_from_config,
)

import hub_server
from training import (
    EXAMPLES,
    TINY,
    forget_accelerator,
    train,
    write_classifier,
    write_images,
)


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    forget_accelerator()


@pytest.fixture(scope="session")
def classifier_file(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier") / "classifier.safetensors")


def weights(folder):
    return load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")


def test_epoch_saves_a_pipeline_that_a_new_process_loads(image_folder, tmp_path):
    output_dir = tmp_path / "model"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    command += [str(EXAMPLES / "train_unconditional.py"), *TINY, "--train_data_dir", str(image_folder)]
    command += ["--output_dir", str(output_dir), "--num_epochs", "1", "--prediction_type", "v_prediction"]
    command += ["--no-clip_sample"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (output_dir / "samples" / "step-000004.png").read_bytes() == (output_dir / "sample.png").read_bytes()
    assert (output_dir / "checkpoint-4").is_dir()
    assert list((output_dir / "logs").rglob("events.out.tfevents.*"))

    script = (
        "import sys, numpy, ddim_scheduler, diffusers\n"
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "config = pipe.scheduler.config\n"
        "print(type(pipe).__name__, type(pipe.scheduler).__name__, config.prediction_type, config.clip_sample)\n"
        "numpy.save(sys.argv[2], pipe(batch_size=2, num_inference_steps=3, seed=5, output_type='np').images)\n"
    )
    command = [sys.executable, "-c", script, str(output_dir), str(tmp_path / "images.npy")]
    printed = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert printed.split() == ["EtaDDIMPipeline", "EtaDDIMScheduler", "v_prediction", "False"]
    pipeline = EtaDDIMPipeline.from_pretrained(output_dir)
    images = pipeline(batch_size=2, num_inference_steps=3, seed=5, output_type="np").images
    assert np.abs(images - np.load(tmp_path / "images.npy")).max() < 1e-5


def test_loss_falls(image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--checkpointing_steps", 10)
    first = train(*common, "--output_dir", tmp_path / "short", "--max_train_steps", 10)
    last = train(*common, "--output_dir", tmp_path / "long", "--max_train_steps", 100)
    assert last < 0.7 * first


@pytest.mark.parametrize("accumulation", [1, 2])
def test_resumed_run_equals_the_uninterrupted_one(image_folder, tmp_path, accumulation):
    common = ("--train_data_dir", image_folder, "--max_train_steps", 9, "--checkpointing_steps", 3, "--logger", "none")
    common += ("--random_flip", "--gradient_accumulation_steps", accumulation)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    loss = train(*common, "--output_dir", whole)
    resumed.mkdir()
    shutil.copytree(whole / "checkpoint-3", resumed / "checkpoint-3")
    assert train(*common, "--output_dir", resumed, "--resume_from_checkpoint", "latest") == loss
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    assert torch.equal(
        torch.load(whole / "checkpoint-9" / "optimizer.bin")["state"][0]["exp_avg"],
        torch.load(resumed / "checkpoint-9" / "optimizer.bin")["state"][0]["exp_avg"],
    )


def test_resuming_something_else_is_refused(image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    common += ("--checkpointing_steps", 2)
    train(*common, "--max_train_steps", 4)
    record = (tmp_path / "model" / "training_args.json").read_text()
    resume = (*common, "--resume_from_checkpoint", "latest")
    with pytest.raises(ValueError, match="checkpoint-4 is after the last step, 3"):
        train(*resume, "--max_train_steps", 3)
    with pytest.raises(ValueError, match="`prediction_type` is 'sample', but 'v_prediction'"):
        train(*resume, "--max_train_steps", 6, "--prediction_type", "sample")
    with pytest.raises(ValueError, match=r"checkpoint-2: move .*checkpoint-4 away"):
        train(*common, "--max_train_steps", 6, "--resume_from_checkpoint", tmp_path / "model" / "checkpoint-2")
    weights_file = tmp_path / "model" / "checkpoint-4" / "model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:100])
    checkpoint = ("--resume_from_checkpoint", tmp_path / "model" / "checkpoint-4")
    with pytest.raises(ValueError, match=r"checkpoint-4 is not whole.*checkpoint-2"):
        train(*common, *checkpoint, "--max_train_steps", 6)
    assert (tmp_path / "model" / "training_args.json").read_text() == record


@pytest.mark.parametrize("use_ema", [True, False])
def test_saved_weights_are_the_moving_average(image_folder, tmp_path, use_ema):
    """EMAModel's decay at step k is 1 - k^-3/4, with inverse gamma 1 and power 3/4."""
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    arguments = [*TINY, *map(str, common), "--max_train_steps", "4", "--checkpointing_steps", "1"]
    if not use_ema:
        arguments.append("--no-use_ema")
    train_unconditional.main(arguments)
    average = None
    for step in range(1, 5):
        raw = load_file(tmp_path / "model" / f"checkpoint-{step}" / "model.safetensors")["conv_in.weight"]
        decay = 0.0 if average is None or not use_ema else 1 - step**-0.75
        average = raw if decay == 0 else decay * average + (1 - decay) * raw
    assert (weights(tmp_path / "model")["conv_in.weight"] - average).abs().max() < 1e-6


def test_old_checkpoints_are_deleted(image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    train(*common, "--max_train_steps", 4, "--checkpointing_steps", 1, "--checkpoints_total_limit", 2)
    assert sorted(p.name for p in (tmp_path / "model").glob("*checkpoint*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_learning_rate_counts_optimizer_steps(image_folder, tmp_path, monkeypatch, accumulation):
    rates = []
    monkeypatch.setattr(Accelerator, "log", lambda self, values, step: rates.append((step, values["lr"])))
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    train(*common, "--max_train_steps", 8, "--gradient_accumulation_steps", accumulation, "--checkpointing_steps", 1)
    expected = [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(1, 7))]
    assert [step for step, _ in rates] == list(range(1, 9))
    assert np.abs(np.array([lr for _, lr in rates]) / 1e-3 - expected).max() < 1e-6


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_targets(prediction_type):
    accelerator = Accelerator(cpu=True)
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type)
    images = torch.rand(64, 1, 4, 4) * 2 - 1
    noisy, timesteps, target, _ = training_batch(images, scheduler, (0, 1, 2), accelerator)
    again = training_batch(images, scheduler, (0, 1, 2), accelerator)
    assert all(torch.equal(a, b) for a, b in zip((noisy, timesteps, target), again, strict=False))
    assert not torch.equal(noisy, training_batch(images, scheduler, (0, 1, 3), accelerator)[0])
    # a model that returns the target is exact: its x_0 is the image
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)
    assert (scheduler.step(target, timesteps, noisy).pred_original_sample - images).abs().max() < 2e-3


def test_offset_noise_and_dropped_labels():
    accelerator = Accelerator(cpu=True)
    scheduler = EtaDDIMScheduler()
    images = torch.zeros(4000, 2, 4, 4)
    *_, target, is_dropped = training_batch(images, scheduler, (0,), accelerator, 0.5, 0.25)
    plain = training_batch(images, scheduler, (0,), accelerator)
    offset = target - plain[2]
    assert (offset - offset[:, :, :1, :1]).abs().max() < 1e-5
    assert abs(offset[:, :, 0, 0].std().item() - 0.5) < 0.02
    assert abs(is_dropped.float().mean().item() - 0.25) < 0.03
    assert not plain[3].any()
    assert target.dtype == torch.float32


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_min_snr_weights(prediction_type, zero_snr):
    """A wrong x_0 costs min(SNR, gamma) times its squared error, whatever the model predicts."""
    gamma = 5.0
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr, clip_sample=False)
    weights = loss_weights(scheduler, gamma)
    assert weights.shape == (1000,)
    assert weights.isfinite().all()
    assert (loss_weights(scheduler, None) == 1).all()
    if zero_snr:
        assert weights[-1] == (1 if prediction_type == "epsilon" else 0)
    bars = scheduler.alphas_cumprod.double()
    timesteps = torch.arange(0, 1000, 37)
    alpha, sigma = bars[timesteps].sqrt(), (1 - bars[timesteps]).sqrt()
    # the squared error of the prediction that a unit error of x_0 makes at the same x_t
    squared = {"sample": torch.ones_like(alpha), "epsilon": (alpha / sigma) ** 2, "v_prediction": 1 / sigma**2}
    loss = weights[timesteps] * squared[prediction_type]
    expected = (alpha / sigma).square().clamp(max=gamma)
    assert ((loss - expected).abs() <= 1e-3 * expected).all()


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_zero_terminal_snr_with_min_snr_trains(image_folder, tmp_path, prediction_type):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    common += ("--prediction_type", prediction_type, "--rescale_betas_zero_snr", "--snr_gamma", 5)
    assert np.isfinite(train(*common, "--max_train_steps", 2, "--ddpm_num_steps", 4))
    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.scheduler.alphas_cumprod[-1] == 0
    assert all(torch.isfinite(value).all() for value in weights(tmp_path / "model").values())


def test_loss_of_each_quarter_of_the_timesteps():
    accelerator = Accelerator(cpu=True)
    recent = [(torch.tensor([1.0, 2.0]), torch.tensor([0, 249])), (torch.tensor([6.0]), torch.tensor([999]))]
    assert mean_losses(accelerator, recent, 1000) == {
        "loss": 3.0,
        "loss/timesteps_0-249": 1.5,
        "loss/timesteps_750-999": 6.0,
    }


@pytest.mark.parametrize("options", [(), ("--mixed_precision", "bf16", "--channels_last", "--gradient_checkpointing")])
def test_same_seed_same_run(image_folder, tmp_path, options):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 4, "--logging_steps", 1)
    seen = []
    for name, seed in (("first", 1), ("second", 1), ("third", 2)):
        train(*common, "--output_dir", tmp_path / name, "--seed", seed, *options)
        seen.append((tmp_path / name / "logs" / "losses.jsonl").read_text())
    assert seen[0] == seen[1] != seen[2]
    for name, value in weights(tmp_path / "first").items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights(tmp_path / "second")[name]), name


def test_compiled_run_resumes(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "AOT_EAGER")
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 2, "--checkpointing_steps", 1)
    train(*common, "--output_dir", tmp_path)
    expected = weights(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-2")
    train(*common, "--output_dir", tmp_path, "--resume_from_checkpoint", "latest")
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in expected.items())


def test_class_conditional(tmp_path):
    """Black and white images in two folders: the model learns which is which; the last label, 2, means no class."""
    for label, gray in (("black", 0), ("white", 255)):
        (tmp_path / "images" / label).mkdir(parents=True)
        for k in range(8):
            write(tmp_path / "images" / label / f"{k}.png", np.full((16, 16), gray, dtype=np.uint8))
    common = ("--train_data_dir", tmp_path / "images", "--output_dir", tmp_path / "model", "--class_conditional")
    common += ("--prediction_type", "sample", "--logger", "none", "--lr_scheduler", "constant_with_warmup")
    train(*common, "--max_train_steps", 60, "--train_batch_size", 16, "--learning_rate", 3e-3)
    assert json.loads((tmp_path / "model" / "training_args.json").read_text())["class_names"] == ["black", "white"]
    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.unet.config.num_class_embeds == 3
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        black, white, neither = (pipeline.unet(noise, 999, torch.tensor([k])).sample.mean() for k in range(3))
    assert white - black > 1
    assert black < neither < white


def test_validation_loss_is_that_of_held_out_images_and_the_same_each_time(image_folder, tmp_path):
    """By hand: the EMA weights' errors at evenly spread timesteps; nothing else depends on it but what is held out."""
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 4, "--save_images_steps", 2)
    train(*common, "--output_dir", tmp_path / "model", "--validation_share", 0.2, "--prediction_type", "v_prediction")
    logged = [line for line in losses(tmp_path / "model") if "validation_loss" in line]
    assert [line["step"] for line in logged] == [2, 4]
    _, held_out = train_unconditional.load_datasets(
        parse_args(["--train_data_dir", str(image_folder), "--resolution", "16", "--validation_share", "0.2"]),
        Accelerator(cpu=True),
    )
    assert len(held_out) == 3
    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    errors = []
    with torch.no_grad():
        for k in range(256):
            image, t = held_out[k % 3][0][None], torch.tensor([1000 * k // 256])
            noise = torch.randn(image.shape, generator=image_generators(0, [k])[0])
            output = pipeline.unet(pipeline.scheduler.add_noise(image, noise, t), t).sample
            errors.append((output - pipeline.scheduler.get_velocity(image, noise, t)).square().mean().item())
    expected = {"loss": np.mean(errors)}
    expected |= {f"loss/timesteps_{250 * k}-{250 * k + 249}": np.mean(errors[64 * k :][:64]) for k in range(4)}
    assert len(logged[1]) == 1 + len(expected)
    for name, value in expected.items():
        assert logged[1][f"validation_{name}"] == pytest.approx(value, rel=1e-4)
    assert logged[0]["validation_loss"] > logged[1]["validation_loss"]


# ---------------------------------------------------------------------------------------------------------- evaluation


def losses(output_dir):
    return [json.loads(line) for line in (output_dir / "logs" / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("class_conditional", [False, True])
def test_evaluation_equals_that_of_the_saved_pipeline(tmp_path, classifier_file, class_conditional):
    """At the end: the EMA weights' images against those that were trained on, 30 of one class and 10 of the other."""
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", 60)
    for k in range(1, 40, 2):
        (tmp_path / "images" / "1" / f"{k}.png").unlink()
    common = ("--train_data_dir", tmp_path / "images", "--logger", "none", "--resolution", 20, 24)
    common += ("--output_dir", tmp_path / "model", "--max_train_steps", 3, "--eval_every", 2, "--eval_num_images", 36)
    common += ("--eval_features", "digits", "--eval_weights", classifier_file)
    train(*common, *["--class_conditional"] * class_conditional)
    logged = [line for line in losses(tmp_path / "model") if "eval/frechet" in line]
    assert [line["step"] for line in logged] == [2, 3]
    assert logged[0]["eval/frechet"] != logged[1]["eval/frechet"]

    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    labels = [0] * 27 + [1] * 9 if class_conditional else None
    images = pipeline(batch_size=36, num_inference_steps=3, seed=0, class_labels=labels, output_type="pt").images
    network = evaluation.load_network("digits", classifier_file)
    features = evaluation.extract_features((images * 255).round().byte(), network)
    reference = evaluation.extract_features(evaluation.load_images(tmp_path / "images"), network)
    assert logged[1]["eval/frechet"] == pytest.approx(evaluation.frechet_distance(features, reference), rel=1e-3)
    # by subsets, which are others in another order of the images
    assert logged[1]["eval/kernel"] == pytest.approx(evaluation.kernel_distance(features, reference)[0], rel=0.05)


def test_evaluation_changes_nothing_else(tmp_path, classifier_file):
    """Of a UNet with dropout, whose random numbers come from the global generators."""
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", 40)
    config = {"sample_size": 16, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "dropout": 0.5}
    UNet2DModel(block_out_channels=(8,) * 4, **config).save_config(tmp_path / "config")
    common = ("--train_data_dir", tmp_path / "images", "--logger", "none", "--max_train_steps", 6, "--logging_steps", 1)
    common += ("--model_config_name_or_path", tmp_path / "config", "--checkpointing_steps", 2, "--random_flip")
    evaluation = ("--eval_num_images", 33, "--eval_features", "digits", "--eval_weights", classifier_file)
    train(*common, "--output_dir", tmp_path / "without")
    train(*common, "--output_dir", tmp_path / "with", *evaluation, "--eval_every", 1)
    resumed = tmp_path / "resumed"
    shutil.copytree(tmp_path / "with" / "checkpoint-2", resumed / "checkpoint-2")
    train(*common, "--output_dir", resumed, "--resume_from_checkpoint", "latest", *evaluation, "--eval_every", 3)
    without, evaluated_run, resumed_run = (
        json.loads((tmp_path / name / "checkpoint-6" / "checksums.json").read_text())
        for name in ("without", "with", "resumed")
    )
    assert evaluated_run == without
    # accelerate 1.0 counts the steps of a resumed run from 0 in that file; nothing depends on it
    assert without.pop("random_states_0.pkl")
    assert resumed_run.pop("random_states_0.pkl")
    assert resumed_run == without
    evaluated = [line for line in losses(tmp_path / "with") if "eval/frechet" in line]
    assert [line for line in losses(tmp_path / "with") if line not in evaluated] == losses(tmp_path / "without")
    assert [line for line in losses(resumed) if "eval/frechet" in line] == [evaluated[2], evaluated[5]]


def test_evaluation_of_few_images_is_the_kernel_distance(image_folder, tmp_path, classifier_file, caplog):
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--max_train_steps", 1)
    common += ("--eval_every", 1, "--eval_features", "digits", "--eval_weights", classifier_file)
    train(*common, "--eval_num_images", 8)
    assert "32 features need more images, but `eval_num_images` is 8 and 16 images are trained on" in caplog.text
    assert [[*line][1:] for line in losses(tmp_path / "model") if "loss" not in line] == [["eval/kernel"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--eval_num_images", 3), "needs 4 images for the kernel distance, but `eval_num_images` is 3 and 40 images"),
        (("--channels", 3), "'digits' needs gray images, but these have 3 channels"),
        (("--channels", 4), "`eval_every` needs gray or colour images, but these have 4 channels"),
        (("--eval_weights", __file__), "`eval_features` 'digits' cannot be loaded"),
    ],
)
def test_evaluation_that_cannot_be_is_refused(tmp_path, classifier_file, arguments, message):
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", 40)
    common = ("--train_data_dir", tmp_path / "images", "--output_dir", tmp_path / "model", "--eval_every", 1)
    common += ("--eval_features", "digits", "--eval_weights", classifier_file)
    with pytest.raises(ValueError, match=message):
        train(*common, *arguments)
    assert not (tmp_path / "model").exists()


def test_evaluation_without_its_packages_is_refused(image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ValueError, match=r'`eval_every` needs torchmetrics: pip install "ddim-scheduler\[eval\]"'):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--eval_every", 1)
    assert not (tmp_path / "model").exists()


def test_help_has_each_default_and_the_features_of_evaluate(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{{{','.join(evaluation.FEATURES)}}}" in printed
    assert "seed of weights, data order, noise and previews (default: 0)" in printed
    assert "(default: None)" not in printed
    assert "(default: False)" not in printed


# ---------------------------------------------------------------------------------------------------------------- data


def write(path, array):
    PIL.Image.fromarray(array).save(path)


def load(folder, *arguments):
    arguments = ["--train_data_dir", str(folder), *map(str, arguments)]
    return load_dataset(arguments)


def load_dataset(arguments):
    return train_unconditional.load_datasets(parse_args(arguments), Accelerator(cpu=True))[0]


def test_images_are_decoded_without_loss(tmp_path):
    rng = np.random.default_rng(0)
    gray = rng.integers(256, size=(8, 8), dtype=np.uint8)
    sixteen_bit = rng.integers(65536, size=(8, 8), dtype=np.uint16)
    write(tmp_path / "a.png", gray)
    write(tmp_path / "b.png", sixteen_bit)
    dataset = load(tmp_path, "--resolution", 8)
    assert dataset.channels == 1
    first, second = (dataset[list(dataset.order).index(k)][0][0] for k in range(2))
    assert torch.equal(first, torch.from_numpy(gray).float() / 255 * 2 - 1)
    assert (second - (torch.from_numpy(sixteen_bit.astype(np.float32)) / 65535 * 2 - 1)).abs().max() < 1e-6


def test_colour_and_gray_mix(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(256, size=(8, 8, 3), dtype=np.uint8)
    write(tmp_path / "a.png", colour)
    write(tmp_path / "b.png", colour[..., 0])
    mixed = load(tmp_path, "--resolution", 8)
    assert mixed.channels == 3
    first, second = (mixed[list(mixed.order).index(k)][0] for k in range(2))
    assert torch.equal(second, first[:1].expand(3, -1, -1))
    assert load(tmp_path, "--resolution", 8, "--channels", 1).channels == 1


def test_crop_and_flip(tmp_path):
    write(tmp_path / "a.png", np.arange(8 * 20, dtype=np.uint8).reshape(8, 20))
    whole = np.arange(8 * 20, dtype=np.float32).reshape(8, 20) / 255 * 2 - 1
    center = load(tmp_path, "--resolution", 8, "--center_crop")
    assert np.abs(center[0][0][0].numpy() - whole[:, 6:14]).max() < 1e-6
    cropped = load(tmp_path, "--resolution", 8, "--random_flip")
    seen = set()
    for epoch in range(50):
        cropped.set_epoch(epoch)
        row = (cropped[0][0][0, 0].numpy() + 1) / 2 * 255
        assert torch.equal(cropped[0][0], cropped[0][0])
        seen.add((round(float(row.min())), bool(row[0] > row[-1])))
    assert len({left for left, _ in seen}) > 8
    assert {mirrored for _, mirrored in seen} == {False, True}


def test_resize_keeps_the_mean_and_the_aspect_ratio(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(256, size=(64, 32, 3), dtype=np.uint8)
    write(tmp_path / "a.png", image)
    dataset = load(tmp_path, "--resolution", 16)
    assert dataset.images[0][0].shape == (3, 32, 16)
    assert abs(dataset.images[0][0].float().mean().item() - image.mean()) < 1


def test_dataset_name(tmp_path, monkeypatch):
    import datasets

    encoded = [{"bytes": None, "path": str(tmp_path / f"{k}.png")} for k in range(3)]
    for k in range(3):
        write(tmp_path / f"{k}.png", np.full((8, 8), k, dtype=np.uint8))
    data = datasets.Dataset.from_dict({"image": [e["path"] for e in encoded]}).cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    arguments = ["--dataset_name", "some/set", "--resolution", "8"]
    dataset = load_dataset(arguments)
    assert {round((item.mean().item() + 1) / 2 * 255) for item, _ in dataset} == {0, 1, 2}
    with pytest.raises(ValueError, match="`image_column`"):
        load_dataset([*arguments, "--image_column", "img"])
    with_nothing = datasets.Dataset.from_dict({"image": [encoded[0]["path"], None], "k": [1, 2]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: with_nothing)
    with pytest.raises(ValueError, match="number 1 of the data set cannot be read"):
        load_dataset(arguments)
    with pytest.raises(ValueError, match="`image_column` 'k' holds no images"):
        load_dataset([*arguments, "--image_column", "k"])


@pytest.mark.parametrize(
    ("array", "largest"),
    [
        (np.arange(64, dtype=np.uint8).reshape(8, 8), 255),
        (np.arange(192, dtype=np.uint16).reshape(8, 8, 3) * 300, 65535),
        (np.linspace(0, 1, 320, dtype=np.float32).reshape(8, 8, 5), 1),
    ],
)
def test_arrays(tmp_path, array, largest):
    np.save(tmp_path / "a.npy", array)
    dataset = load(tmp_path, "--resolution", 8)
    expected = torch.from_numpy(array.reshape(8, 8, -1) / largest * 2 - 1).permute(2, 0, 1)
    assert dataset.channels == len(expected)
    assert (dataset[0][0] - expected).abs().max() < 1e-6


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_training_with_other_channels_and_sizes(tmp_path, channels):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for k in range(4):
        np.save(tmp_path / "images" / f"{k}.npy", rng.random((8, 16, channels), dtype=np.float32))
    common = ("--train_data_dir", tmp_path / "images", "--output_dir", tmp_path / "model", "--max_train_steps", 1)
    train(*common, "--resolution", 8, 16)
    pipeline = EtaDDIMPipeline.from_pretrained(tmp_path / "model")
    assert pipeline(num_inference_steps=2, output_type="np").images.shape == (1, 8, 16, channels)
    if channels in (1, 4):
        preview = PIL.Image.open(tmp_path / "model" / "sample.png")
        assert (preview.size, len(preview.getbands())) == ((2 * 16, 2 * 8), channels)
    else:
        preview = np.load(tmp_path / "model" / "samples" / "step-000001.npy")
        assert (preview.shape, preview.dtype) == ((4, 8, 16, channels), np.uint8)


def test_model_config_is_used_at_the_resolution_and_with_the_classes(tmp_path):
    config = {"sample_size": 64, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "dropout": 0.5}
    UNet2DModel(block_out_channels=(8,) * 4, num_class_embeds=1000, **config).save_config(tmp_path)
    for num_classes, embeddings in ((None, None), (10, 11)):
        unet = unet_from_config(tmp_path, [16, 32], 1, num_classes)
        assert list(unet.config.sample_size) == [16, 32]
        assert unet.config.num_class_embeds == embeddings
        assert unet.config.dropout == 0.5


def test_photos_are_turned_as_their_camera_says(tmp_path):
    image = PIL.Image.fromarray(np.repeat(np.uint8([[0] * 8 + [255] * 8]), 8, axis=0))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load(tmp_path, "--resolution", 16, 8)[0][0]
    assert pixels.shape == (1, 16, 8)
    assert (pixels[:, :8] == -1).all()
    assert (pixels[:, 8:] == 1).all()


def test_images_that_do_not_fit_in_memory_are_decoded_each_time(image_folder):
    cached = load(image_folder, "--resolution", 16, "--random_flip")
    decoded = load(image_folder, "--resolution", 16, "--random_flip", "--image_cache_gb", 1e-6)
    assert decoded.images is None
    for position in range(16):
        assert torch.equal(cached[position][0], decoded[position][0])


def test_worker_processes_change_nothing(image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 6, "--random_flip")
    losses = [
        train(*common, "--output_dir", tmp_path / str(n), "--dataloader_num_workers", n, "--image_cache_gb", 0)
        for n in (0, 2)
    ]
    assert losses[0] == losses[1]


def test_labels_of_a_data_set(tmp_path, monkeypatch):
    import datasets

    write(tmp_path / "a.png", np.zeros((8, 8), dtype=np.uint8))
    images = [str(tmp_path / "a.png")] * 3
    named = datasets.Dataset.from_dict({"image": images, "label": [1, 0, 1]})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: named.cast(features))
    assert find_dataset_images("some/set", class_conditional=True)[1:3] == ([1, 0, 1], ["cat", "dog"])
    other = datasets.Dataset.from_dict({"image": images, "label": ["x", "y", "x"]}).cast_column(
        "image", datasets.Image()
    )
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: other)
    assert find_dataset_images("some/set", class_conditional=True)[1:3] == ([0, 1, 0], ["x", "y"])
    for label in (None, -1):
        unlabelled = datasets.Dataset.from_dict({"image": images, "label": [0, 1, label]}, features=features)
        monkeypatch.setattr(datasets, "load_dataset", lambda *args, data=unlabelled, **kwargs: data)
        with pytest.raises(ValueError, match=f"`label` of number 2 of the data set is {label}, which is no class"):
            find_dataset_images("some/set", class_conditional=True)
    with pytest.raises(ValueError, match="`label_column` must be one of"):
        find_dataset_images("some/set", label_column="class", class_conditional=True)


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--train_data_dir"),
        (("--train_data_dir", "missing"), "missing"),
        (("--train_data_dir", ".", "--dataset_name", "mnist"), "--dataset_name"),
        (("--train_data_dir", ".", "--resolution", "0"), "--resolution"),
        (("--train_data_dir", ".", "--learning_rate", "-1"), "--learning_rate"),
        (("--train_data_dir", ".", "--learning_rate", "nan"), "--learning_rate"),
        (("--train_data_dir", ".", "--train_batch_size", "-4"), "--train_batch_size"),
        (("--train_data_dir", ".", "--max_train_steps", "0"), "--max_train_steps"),
        (("--train_data_dir", ".", "--seed", "-1"), "--seed"),
        (("--train_data_dir", ".", "--ddpm_num_inference_steps", "2000"), "--ddpm_num_inference_steps"),
        (("--train_data_dir", ".", "--prediction_type", "noise"), "--prediction_type"),
        (("--train_data_dir", ".", "--channels", "0"), "--channels"),
        (("--train_data_dir", ".", "--attention_resolutions", "0"), "--attention_resolutions"),
        (("--train_data_dir", ".", "--logging_steps", "0"), "--logging_steps must be positive, but is 0"),
        (("--train_data_dir", ".", "--learning_rate", "inf"), "--learning_rate"),
        (("--train_data_dir", ".", "--ema_max_decay", "5"), "--ema_max_decay"),
        (("--train_data_dir", ".", "--adam_beta1", "1"), "--adam_beta1"),
        (("--train_data_dir", ".", "--adam_weight_decay", "nan"), "--adam_weight_decay"),
        (("--train_data_dir", ".", "--block_out_channels", "0", "8"), "--block_out_channels"),
        (("--train_data_dir", ".", "--resolution", "8", "8", "8"), "--resolution"),
        (("--train_data_dir", ".", "--label_dropout", "1"), "--label_dropout"),
        (("--train_data_dir", ".", "--snr_gamma", "0"), "--snr_gamma"),
        (("--train_data_dir", ".", "--noise_offset", "-0.1"), "--noise_offset"),
        (("--train_data_dir", ".", "--rescale_betas_zero_snr", "--prediction_type", "epsilon"), "no signal"),
        (("--train_data_dir", ".", "--hub_private_repo"), "need --push_to_hub"),
        (("--train_data_dir", ".", "--logger", "paper"), "--logger"),
        (("--train_data_dir", ".", "--eval_every", "0"), "--eval_every"),
        (
            ("--train_data_dir", ".", "--eval_every", "1", "--eval_weights", "nowhere"),
            "--eval_weights is no file: nowhere",
        ),
        (("--train_data_dir", ".", "--eval_weights", __file__), "--eval_weights needs --eval_every"),
    ],
)
def test_bad_argument(arguments, message, capsys):
    with pytest.raises(SystemExit):
        parse_args(list(arguments))
    assert message in capsys.readouterr().err


def test_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match="`train_data_dir` holds no images"):
        train("--train_data_dir", tmp_path / "images", "--output_dir", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken", "half"])
def test_unreadable_image_is_named(image_folder, tmp_path, content):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    if content == "half":
        whole = (image_folder / "0" / "0.png").read_bytes()
        content = whole[: len(whole) // 2]
    (folder / "1" / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.png"):
        train("--train_data_dir", folder, "--output_dir", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_link_to_nothing_is_named(image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    (folder / "0" / "lost.png").symlink_to("gone.png")
    with pytest.raises(ValueError, match=r"lost\.png cannot be read"):
        train("--train_data_dir", folder, "--output_dir", tmp_path / "model")


def test_output_among_the_images_is_refused(image_folder):
    with pytest.raises(ValueError, match=r"`output_dir` .* is in `train_data_dir`"):
        train("--train_data_dir", image_folder, "--output_dir", image_folder / "model")
    assert not (image_folder / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train_batch_size", 17), "`train_batch_size`"),
        (("--resolution", 15), r"`resolution` must be a multiple of 2 .* \[15, 15\]; the first 1 would do, .* 8\.$"),
        (("--resume_from_checkpoint", "nowhere"), "`resume_from_checkpoint`"),
        (("--logger", "aim"), "`logger` is 'aim'"),
        (("--mixed_precision", "fp16"), "`mixed_precision` 'fp16'"),
        (("--block_out_channels", 4, 12, "--attention_resolutions", 8), "`block_out_channels`"),
        (("--block_out_channels", 16, 7, "--attention_resolutions"), "`block_out_channels` must end with at least 8"),
        (("--model_config_name_or_path", "learned variance"), "learned variances are not trained"),
        (("--model_config_name_or_path", "wrong"), "channels"),
    ],
)
def test_bad_run_writes_nothing(image_folder, tmp_path, arguments, message):
    if arguments[0] == "--model_config_name_or_path":
        channels = {"in_channels": 3} if arguments[1] == "wrong" else {"in_channels": 1, "out_channels": 2}
        UNet2DModel(block_out_channels=(8,) * 4, norm_num_groups=4, **channels).save_config(tmp_path)
        arguments = (arguments[0], tmp_path)
    with pytest.raises(ValueError, match=message):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", *arguments)
    assert not (tmp_path / "model").exists()


LEVELS = {"block_out_channels": (8,) * 4, "norm_num_groups": 4, "in_channels": 1, "out_channels": 1}
THREE_LEVELS = {
    **{**LEVELS, "block_out_channels": (8,) * 3},
    **{"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3},
}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (LEVELS, ("--resolution", 28), r"`resolution` must be a multiple of 8 .* '{path}', but is \[28, 28\]"),
        (THREE_LEVELS, ("--resolution", 16, 18), r"`resolution` must be a multiple of 4 .* but is \[16, 18\]"),
        ({**LEVELS, "class_embed_type": "timestep"}, (), "'{path}' has the `class_embed_type` 'timestep'"),
        ({**LEVELS, "class_embed_type": "identity"}, ("--class_conditional",), "'{path}' makes a network that fails"),
        ({**LEVELS, "time_embedding_type": "fourier"}, (), r"'{path}' .* not finite at the timesteps \[0\].*'fourier'"),
        ({**LEVELS, "freq_shift": 4}, (), r"'{path}' makes a network whose output is not finite at .* \[0, 999\]"),
        (
            {**LEVELS, "time_embedding_type": "learned", "num_train_timesteps": 500},
            ("--ddpm_num_steps", 501),
            r"'{path}' makes a network that fails .* at the timesteps \[0, 500\]",
        ),
        ({**LEVELS, "norm_num_groups": 3}, (), "'{path}' makes no UNet2DModel: num_channels"),
        ({**THREE_LEVELS, "up_block_types": ("UpBlock2D",)}, (), "'{path}' makes no UNet2DModel"),
    ],
)
def test_model_config_that_cannot_train_is_refused(image_folder, tmp_path, config, options, message):
    """By name, with its value, and before anything is written."""
    path = tmp_path / "config"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", **config}))
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path / "model")
    message = r"`model_config_name_or_path` " * message.startswith("'") + message.replace("{path}", str(path))
    with pytest.raises(ValueError, match=message):
        train(*common, "--model_config_name_or_path", path, *options)
    assert not (tmp_path / "model").exists()


def test_trying_a_model_config_draws_nothing(tmp_path):
    """The weights, and what comes after them, are those of the model that is built without the trial."""
    UNet2DModel(**LEVELS).save_config(tmp_path)
    config = {**UNet2DModel.load_config(tmp_path), "sample_size": 16, "num_class_embeds": None}
    torch.manual_seed(0)
    expected, then = UNet2DModel.from_config(config), torch.rand(3)
    torch.manual_seed(0)
    unet = unet_from_config(tmp_path, [16, 16], 1)
    assert torch.equal(torch.rand(3), then)
    assert unet.training
    assert all(torch.equal(a, b) for a, b in zip(unet.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize("distributed_type", ["FSDP", "DEEPSPEED"])
def test_sharded_training_is_refused(image_folder, tmp_path, monkeypatch, distributed_type):
    distributed_type = DistributedType(distributed_type)
    monkeypatch.setattr(Accelerator, "distributed_type", distributed_type)
    with pytest.raises(ValueError, match=f"`distributed_type` {distributed_type.value} is not supported.*DDP"):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_output_folder_that_holds_files_is_left_alone(image_folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="`output_dir` is not empty"):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path)
    assert os.listdir(tmp_path) == ["thesis.txt"]


def test_overwriting_deletes_only_what_a_run_wrote(image_folder, tmp_path):
    common = (
        "--train_data_dir",
        image_folder,
        "--output_dir",
        tmp_path,
        "--logger",
        "none",
        "--checkpointing_steps",
        1,
    )
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds files, but of no training"):
        train(*common, "--max_train_steps", 2, "--overwrite_output_dir")
    (tmp_path / "training_args.json").write_text("{}")
    train(*common, "--max_train_steps", 2, "--overwrite_output_dir")
    train(*common, "--max_train_steps", 1, "--overwrite_output_dir")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step-000001.png"]


def test_overwriting_never_deletes_the_images(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "samples")
    (tmp_path / "training_args.json").write_text("{}")
    with pytest.raises(ValueError, match="`overwrite_output_dir` would delete `train_data_dir`"):
        train("--train_data_dir", tmp_path / "samples", "--output_dir", tmp_path, "--overwrite_output_dir")
    assert len([*(tmp_path / "samples").rglob("*.png")]) == 16


def test_limit_of_checkpoints_keeps_the_new_one(image_folder, tmp_path):
    """Even beside a damaged one of a later step."""
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--logger", "none")
    train(*common, "--max_train_steps", 6, "--checkpointing_steps", 2)
    (tmp_path / "model" / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    resumed = ("--resume_from_checkpoint", "latest", "--max_train_steps", 5, "--checkpoints_total_limit", 1)
    train(*common, "--checkpointing_steps", 5, *resumed)
    assert sorted(p.name for p in (tmp_path / "model").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]


def test_loss_that_is_not_finite_stops_the_run(image_folder, tmp_path):
    arguments = ("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--logger", "none")
    arguments += ("--max_train_steps", 8, "--checkpointing_steps", 1, "--lr_warmup_steps", 2, "--logging_steps", 1)
    with pytest.raises(ValueError, match=r"The loss is nan at step .* `learning_rate` 1e\+30.*checkpoint-1'"):
        train(*arguments, "--learning_rate", 1e30)
    assert all(value.isfinite().all() for value in weights(tmp_path / "model").values())
    assert all(np.isfinite(line["loss"]) for line in losses(tmp_path / "model"))


def test_weights_that_are_not_finite_are_not_saved(image_folder, tmp_path):
    """After a step whose loss, that before it, was all right."""
    arguments = ("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--logger", "none")
    arguments += ("--max_train_steps", 2, "--checkpointing_steps", 1, "--lr_warmup_steps", 0)
    with pytest.raises(ValueError, match=r"Weights are not finite at step 1, with `learning_rate` 1e\+39.*: \[\]"):
        train(*arguments, "--learning_rate", 1e39)
    assert [line["step"] for line in losses(tmp_path / "model")] == [1]
    assert not list((tmp_path / "model").glob("checkpoint-*"))
    assert not (tmp_path / "model" / "unet").exists()


def test_channels_that_were_found_may_be_said_when_it_goes_on(image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logger", "none")
    train(*common, "--max_train_steps", 1)
    resumed = (*common, "--resume_from_checkpoint", "latest")
    with pytest.raises(ValueError, match="`channels` is 3, but 1 in the run of"):
        train(*resumed, "--max_train_steps", 2, "--channels", 3)
    train(*resumed, "--max_train_steps", 2, "--channels", 1)
    record = tmp_path / "training_args.json"
    settings = json.loads(record.read_text())
    assert settings["channels"] == 1
    record.write_text(json.dumps({**settings, "channels": None}))  # as version 0.1.0 has it
    train(*resumed, "--max_train_steps", 3)


def test_preview_that_fails_loses_no_training(image_folder, tmp_path, monkeypatch):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 3)
    train(*common, "--output_dir", tmp_path / "whole")

    def out_of_memory(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(training, "sample_images", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            train(*common, "--output_dir", tmp_path / "model")
    train(*common, "--output_dir", tmp_path / "model", "--resume_from_checkpoint", "latest")
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "model").items())


def test_gradient_of_fewer_batches_than_are_accumulated_is_their_mean(image_folder, tmp_path):
    """The 4 batches of an epoch, which end it with accumulation 100."""
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_grad_norm", 1e9, "--max_train_steps", 1)
    moments = []
    for accumulation in (4, 100):
        output_dir = tmp_path / str(accumulation)
        train(*common, "--output_dir", output_dir, "--gradient_accumulation_steps", accumulation)
        state = torch.load(output_dir / "checkpoint-1" / "optimizer.bin", weights_only=True)["state"]
        moments.append(torch.cat([parameter["exp_avg"].flatten() for parameter in state.values()]))
    assert (moments[0] - moments[1]).abs().max() < 1e-5 * moments[0].abs().max()


def test_resuming_with_other_classes_or_another_optimizer_is_refused(image_folder, tmp_path):
    folder = shutil.copytree(image_folder, tmp_path / "images")
    common = ("--train_data_dir", folder, "--output_dir", tmp_path / "model", "--logger", "none", "--class_conditional")
    train(*common, "--max_train_steps", 1)
    resumed = ("--max_train_steps", 2, "--resume_from_checkpoint", "latest")
    with pytest.raises(ValueError, match=r"`adam_beta1` is 0\.5, but 0\.9 "):
        train(*common, *resumed, "--adam_beta1", 0.5)
    (folder / "0").rename(folder / "z")
    with pytest.raises(ValueError, match=r"`class_names` is \['1', 'z'\], but \['0', '1'\]"):
        train(*common, *resumed)
    (tmp_path / "model" / "training_args.json").write_text("{")
    with pytest.raises(ValueError, match=r"training_args\.json cannot be read"):
        train(*common, *resumed)


@pytest.mark.parametrize("name", ["model", "model/of/today"])
def test_output_path_through_a_file(image_folder, tmp_path, name):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ValueError, match=r"`output_dir` .* cannot be a folder: .*model is a file"):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / name)


def test_arguments_are_recorded(image_folder, tmp_path):
    train(
        "--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--max_train_steps", 1, "--logger", "none"
    )
    recorded = json.loads((tmp_path / "model" / "training_args.json").read_text())
    assert recorded["train_data_dir"] == str(image_folder)
    assert recorded["seed"] == 0


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((8, 8, 2, 2), dtype=np.uint8), r"shape \(H, W\)"),
        (np.full((8, 8), 1.5), "must be in \\[0, 1\\]"),
        (np.full((8, 8), np.nan), "must be in"),
        (np.zeros((8, 8, 2), dtype=np.uint8), "2 channels, not 3"),
        (np.array([None]), "cannot be read"),
        (np.zeros((0, 8), dtype=np.uint8), "no pixels"),
    ],
)
def test_bad_array_is_named(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array)
    write(tmp_path / "good.png", np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=rf"bad\.npy .*{message}"):
        load(tmp_path, "--resolution", 8)


def test_unreadable_image_of_a_data_set_is_named():
    with pytest.raises(ValueError, match="number 0 of the data set cannot be read"):
        ImageDataset([{"bytes": b"no image", "path": None}], [0], resolution=[64, 64])


def test_image_outside_of_the_class_folders_is_named(image_folder, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    shutil.copy(folder / "0" / "0.png", folder / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png"):
        load(folder, "--class_conditional")


# ------------------------------------------------------------------------------------------------------------- the Hub


def test_push_to_hub(image_folder, tmp_path):
    """In a process of its own, since the client reads its settings when it is imported."""
    with hub_server.Hub() as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        common = ["--train_data_dir", str(image_folder), "--max_train_steps", "1", "--push_to_hub"]
        common += ["--hub_token", "hf_secret", "--hub_private_repo"]
        script = (
            "import os, json, sys\n"
            "import training\n"
            "from huggingface_hub import create_repo\n"
            "training.train(*sys.argv[1:], '--output_dir', 'new', '--hub_model_id', 'me/new')\n"
            "create_repo('me/public', token='hf_secret')\n"
            "for name in ('me/public', 'no/such/name'):\n"
            "    try:\n"
            "        training.train(*sys.argv[1:], '--output_dir', 'refused', '--hub_model_id', name)\n"
            "    except ValueError as error:\n"
            "        print(error)\n"
        )
        command = [sys.executable, "-c", script, *common]
        environment["PYTHONPATH"] = str(Path(__file__).parent)
        printed = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert "me/public is there already, and is public" in printed.stdout
        assert "the repository no/such/name cannot be used" in printed.stdout
        assert not (tmp_path / "refused").exists()
        assert hub.repos["me/new"].private
        files = hub.repos["me/new"].at("main")[1]
    assert {"README.md", "model_index.json", "pipeline.py", "sample.png", "training_args.json"} <= files.keys()
    assert not [name for name in files if name.startswith(("checkpoint", "logs"))]
    assert b"max_train_steps" in files["README.md"]
    assert not [name for name, content in files.items() if b"hf_secret" in content]
    assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
