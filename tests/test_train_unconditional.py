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
from diffusers import UNet2DModel
from safetensors.torch import load_file

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler

from training import EXAMPLES, TINY, forget_accelerator, train, train_unconditional, write_images


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    forget_accelerator()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


def weights(folder):
    return load_file(Path(folder) / "unet" / "diffusion_pytorch_model.safetensors")


def test_epoch_saves_a_pipeline_that_a_new_process_loads(image_folder, tmp_path):
    output_dir = tmp_path / "model"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1", "--cpu"]
    command += [str(EXAMPLES / "train_unconditional.py"), *TINY, "--train_data_dir", str(image_folder)]
    command += ["--output_dir", str(output_dir), "--num_epochs", "1", "--prediction_type", "v_prediction"]
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (output_dir / "samples" / "step-000004.png").read_bytes() == (output_dir / "sample.png").read_bytes()
    assert (output_dir / "checkpoint-4").is_dir()
    assert list((output_dir / "logs").rglob("events.out.tfevents.*"))

    script = (
        "import sys, numpy, ddim_scheduler, diffusers\n"
        "pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])\n"
        "print(type(pipe).__name__, type(pipe.scheduler).__name__, pipe.scheduler.config.prediction_type)\n"
        "numpy.save(sys.argv[2], pipe(batch_size=2, num_inference_steps=3, seed=5, output_type='np').images)\n"
    )
    command = [sys.executable, "-c", script, str(output_dir), str(tmp_path / "images.npy")]
    printed = subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert printed.split() == ["EtaDDIMPipeline", "EtaDDIMScheduler", "v_prediction"]
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
    with pytest.raises(ValueError, match="`prediction_type` is 'sample', but 'epsilon'"):
        train(*resume, "--max_train_steps", 6, "--prediction_type", "sample")
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
        arguments.remove("--use_ema")
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


def test_learning_rate_counts_optimizer_steps(image_folder, tmp_path, monkeypatch):
    rates = []
    monkeypatch.setattr(
        train_unconditional.Accelerator, "log", lambda self, values, step: rates.append((step, values["lr"]))
    )
    common = ("--train_data_dir", image_folder, "--logger", "none", "--output_dir", tmp_path / "model")
    train(*common, "--max_train_steps", 8, "--gradient_accumulation_steps", 2, "--checkpointing_steps", 1)
    expected = [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(1, 7))]
    assert [step for step, _ in rates] == list(range(1, 9))
    assert np.abs(np.array([lr for _, lr in rates]) / 1e-3 - expected).max() < 1e-6


@pytest.mark.parametrize("prediction_type", train_unconditional.PREDICTION_TYPES)
def test_targets(prediction_type):
    accelerator = train_unconditional.Accelerator(cpu=True)
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type)
    images = torch.rand(64, 1, 4, 4) * 2 - 1
    noisy, timesteps, target, _ = train_unconditional.training_batch(images, scheduler, (0, 1, 2), accelerator)
    again = train_unconditional.training_batch(images, scheduler, (0, 1, 2), accelerator)
    assert all(torch.equal(a, b) for a, b in zip((noisy, timesteps, target), again, strict=False))
    assert not torch.equal(noisy, train_unconditional.training_batch(images, scheduler, (0, 1, 3), accelerator)[0])
    # a model that returns the target is exact: its x_0 is the image
    scheduler = EtaDDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(10)
    assert (scheduler.step(target, timesteps, noisy).pred_original_sample - images).abs().max() < 2e-3


# ---------------------------------------------------------------------------------------------------------------- data


def write(path, array):
    PIL.Image.fromarray(array).save(path)


def load(folder, *arguments):
    arguments = ["--train_data_dir", str(folder), *map(str, arguments)]
    return train_unconditional.ImageDataset(train_unconditional.parse_args(arguments))


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
    assert dataset.images[0].shape == (3, 32, 16)
    assert abs(dataset.images[0].float().mean().item() - image.mean()) < 1


def test_dataset_name(tmp_path, monkeypatch):
    import datasets

    encoded = [{"bytes": None, "path": str(tmp_path / f"{k}.png")} for k in range(3)]
    for k in range(3):
        write(tmp_path / f"{k}.png", np.full((8, 8), k, dtype=np.uint8))
    data = datasets.Dataset.from_dict({"image": [e["path"] for e in encoded]}).cast_column("image", datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: data)
    dataset = train_unconditional.ImageDataset(
        train_unconditional.parse_args(["--dataset_name", "some/set", "--resolution", "8"])
    )
    assert {round((item.mean().item() + 1) / 2 * 255) for item, _ in dataset} == {0, 1, 2}
    with pytest.raises(ValueError, match="`image_column`"):
        train_unconditional.ImageDataset(
            train_unconditional.parse_args(["--dataset_name", "some/set", "--image_column", "img"])
        )


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
        (("--train_data_dir", ".", "--learning_rate", "inf"), "--learning_rate"),
        (("--train_data_dir", ".", "--ema_max_decay", "5"), "--ema_max_decay"),
        (("--train_data_dir", ".", "--adam_beta1", "1"), "--adam_beta1"),
        (("--train_data_dir", ".", "--adam_weight_decay", "nan"), "--adam_weight_decay"),
        (("--train_data_dir", ".", "--block_out_channels", "0", "8"), "--block_out_channels"),
    ],
)
def test_bad_argument(arguments, message, capsys):
    with pytest.raises(SystemExit):
        train_unconditional.parse_args(list(arguments))
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train_batch_size", 17), "`train_batch_size`"),
        (("--resolution", 15), "`resolution`"),
        (("--resume_from_checkpoint", "nowhere"), "`resume_from_checkpoint`"),
        (("--model_config_name_or_path", "wrong"), "channels"),
    ],
)
def test_bad_run_writes_nothing(image_folder, tmp_path, arguments, message):
    if arguments[0] == "--model_config_name_or_path":
        UNet2DModel(sample_size=16, in_channels=3, block_out_channels=(8,) * 4, norm_num_groups=4).save_config(tmp_path)
        arguments = (arguments[0], tmp_path)
    with pytest.raises(ValueError, match=message):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", *arguments)
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
    train(*common, "--max_train_steps", 2, "--overwrite_output_dir")
    train(*common, "--max_train_steps", 1, "--overwrite_output_dir")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert [p.name for p in (tmp_path / "samples").iterdir()] == ["step-000001.png"]


def test_output_path_that_is_a_file(image_folder, tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(ValueError, match="`output_dir` is no folder"):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model")


def test_arguments_are_recorded(image_folder, tmp_path):
    train(
        "--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--max_train_steps", 1, "--logger", "none"
    )
    recorded = json.loads((tmp_path / "model" / "training_args.json").read_text())
    assert recorded["train_data_dir"] == str(image_folder)
    assert recorded["seed"] == 0
