"""The other examples, run on something small; and what examples import."""

import ast
import copy
import importlib
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from diffusers import UNet2DModel

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, EtaFlowMatchScheduler, fitting
from ddim_scheduler.app import __main__ as app

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import policy_gradient
import prepare_blue_marble
import prepare_digits
import sample_grid

import generate


@pytest.mark.parametrize("folder", ["examples", "benchmarks", "ddim_scheduler", "pipelines"])
def test_nothing_imports_an_example(folder):
    """Each can be copied alone; what several need is in the package."""
    root = Path(__file__).parents[1]
    examples = {file.stem for file in (root / "examples").glob("*.py")}
    for file in (root / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not examples & {part for name in names for part in name.split(".")[:1]}, file


@pytest.mark.parametrize("name", ["tpu9", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused_in_a_line(name, capsys):
    for main in (sample_grid.main, app.main, fitting.main):
        with pytest.raises(SystemExit):
            main(["nowhere", "--device", name])
        error = capsys.readouterr().err
        assert f"torch cannot compute on {name!r}" in error
        assert "Traceback" not in error


def test_prepare_digits(tmp_path, capsys):
    folder = tmp_path / "digits"
    assert prepare_digits.main([str(folder)]) == 5000
    assert "5000 digits" in capsys.readouterr().out
    paths = sorted(folder.rglob("*.png"))
    assert len(paths) == 5000
    for part, number in (("train", 400), ("test", 100)):
        assert [len(list((folder / part / str(label)).iterdir())) for label in range(10)] == [number] * 10
    image = PIL.Image.open(paths[0])
    assert (image.mode, image.size) == ("L", (28, 28))
    assert np.asarray(image).max() > 200
    with pytest.raises(SystemExit):
        prepare_digits.main([str(folder)])
    assert "not empty" in capsys.readouterr().err


def test_pieces_of_the_map_are_land_and_of_separate_stripes():
    """On a map that is blue in its upper half, plain in three of ten stripes, and red noise elsewhere."""
    pixels = np.random.default_rng(0).integers(100, size=(256, 2000, 3), dtype=np.uint8)
    pixels[:128, :, 2] = 200
    pixels[128:, :, 2] = 0
    pixels[:, :600] = 100
    pieces = list(prepare_blue_marble.land_pieces(pixels))
    assert {part for part, *_ in pieces} == {"train", "test"}
    for part, top, left, piece in pieces:
        assert piece.shape == (64, 64, 3)
        assert top >= 96  # at least half of it below the middle
        assert left >= 600
        assert left // 200 == (left + 63) // 200
        assert (left // 200 == 7) == (part == "test")


def test_prepare_blue_marble_refuses_a_folder_with_files(tmp_path, capsys):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(SystemExit):
        prepare_blue_marble.main([str(tmp_path)])
    assert "output_dir is not empty" in capsys.readouterr().err


def test_sample_grid(pipeline, tmp_path, capsys):
    """To the right of ours, the same noise by the built-in scheduler, which agrees where it is right."""
    pipeline.save_pretrained(tmp_path / "model")
    arguments = f"{tmp_path / 'model'} --num_images 7 --num_inference_steps 2 --output {tmp_path / 'grid.png'}".split()
    path = sample_grid.main([*arguments, "--compare_builtin", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "7 images by 2 steps (EtaDDIMScheduler, leading)" in printed
    assert "7 images by 2 steps (DDIMScheduler, leading)" in printed
    assert str(path.resolve()) in printed
    picture = np.asarray(PIL.Image.open(path)).astype(int)
    side = 3 * 2 * pipeline.unet.config.sample_size
    assert picture.shape[:2] == (side, 2 * side + sample_grid.GAP)
    assert np.abs(picture[:, :side] - picture[:, side + sample_grid.GAP :]).max() <= 1
    assert picture[:, :side].std() > 10


def test_sample_grid_with_classes_and_guidance(small_unet, tmp_path):
    """The classes take turns; without guidance and with it, the images are the pipeline's."""
    pipeline = EtaDDIMPipeline(unet=small_unet(num_class_embeds=4), scheduler=EtaDDIMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    arguments = f"{tmp_path / 'model'} --num_images 4 --num_inference_steps 2 --scale 1 --device cpu --output".split()
    for options, labels, scale in (
        ([], [0, 1, 2, 0], 1.0),
        (["--class_labels", "2", "1", "--guidance_scale", "3"], [2, 1, 2, 1], 3.0),
    ):
        picture = np.asarray(PIL.Image.open(sample_grid.main([*arguments, str(tmp_path / "grid.png"), *options])))
        images = pipeline(4, 2, seed=0, class_labels=labels, guidance_scale=scale, output_type="np").images
        grid = np.concatenate([np.concatenate(list(row), axis=1) for row in (images[:2], images[2:])])
        assert np.abs(picture / 255 - grid.squeeze()).max() <= 0.51 / 255


@pytest.mark.parametrize(
    ("classes", "options", "message"),
    [
        (4, ["--class_labels", "0", "4"], "`class_labels` must be in 0..3, but are \\[0, 4\\]"),
        (None, ["--class_labels", "0"], "`class_labels` is \\[0\\], but the UNet has no classes"),
        (None, ["--guidance_scale", "2"], "`guidance_scale` is 2.0, but the UNet has no classes"),
    ],
)
def test_classes_that_a_model_has_not_are_refused(classes, options, message, small_unet, tmp_path, monkeypatch):
    pipeline = EtaDDIMPipeline(unet=small_unet(num_class_embeds=classes), scheduler=EtaDDIMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(EtaDDIMPipeline, "__call__", lambda *_, **__: pytest.fail("images were made"))
    with pytest.raises(ValueError, match=message):
        sample_grid.main([str(tmp_path / "model"), *options])
    with pytest.raises(ValueError, match=message):
        generate.main([str(tmp_path / "model"), "--output_dir", str(tmp_path / "images"), *options])
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("script", ["evaluate", "generate", "invert_and_interpolate", "policy_gradient", "sample_grid"])
def test_wrong_option_of_a_script_is_one_line(script, capsys):
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main(["a", "b", "--resolutoin", "3"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")


@pytest.mark.parametrize("arguments", ["--num_images 0", "--scale 0", "--output grid.txt", "--output grid"])
def test_sample_grid_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        sample_grid.main(["nowhere", *arguments.split()])
    option, value = arguments.split()
    message = capsys.readouterr().err
    assert option in message
    assert value in message


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_sample_grid_keeps_every_channel(channels, small_unet, tmp_path):
    """Alpha in a picture, and an array of what no picture shows."""
    unet = small_unet(in_channels=channels, out_channels=channels)
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    arguments = f"{tmp_path / 'model'} --num_images 3 --num_inference_steps 2 --device cpu --scale 1"
    path = sample_grid.main([*arguments.split(), "--output", str(tmp_path / "grid.png")])
    images = pipeline(3, num_inference_steps=2, seed=0, output_type="np").images
    if channels == 4:
        grid = np.asarray(PIL.Image.open(path))
        assert grid.shape == (16, 16, 4)
        assert np.abs(grid[:8, 8:] / 255 - images[1]).max() <= 0.51 / 255
        assert (grid[8:, 8:] == 0).all()
        with pytest.raises(OSError, match="cannot write mode RGBA as JPEG"):
            sample_grid.main([*arguments.split(), "--num_inference_steps", "0", "--output", str(tmp_path / "grid.jpg")])
    else:
        assert path == tmp_path / "grid.npy"
        assert np.abs(np.load(path) - images).max() < 1e-6


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("script", [policy_gradient])
def test_model_whose_images_no_picture_shows_is_refused(script, channels, small_unet, tmp_path, monkeypatch):
    """Before the sampling, and as one line of an error where the script is started."""
    unet = small_unet(in_channels=channels, out_channels=channels)
    EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler()).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(EtaDDIMPipeline, "__call__", lambda *_, **__: pytest.fail("images were made"))
    with pytest.raises(ValueError, match=f"model makes images of {channels} channels, but pictures have"):
        script.main([str(tmp_path / "model")])
    monkeypatch.setattr(sys, "argv", [script.__file__, str(tmp_path / "model")])
    with pytest.raises(SystemExit, match=f"^error: The model of .* {channels} channels"):
        runpy.run_path(script.__file__, run_name="__main__")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (sample_grid, "--num_inference_steps 0", "`num_inference_steps` must be at least 1, but is 0"),
        (sample_grid, "--num_inference_steps 2000", "2000"),
        (sample_grid, "--eta 2", "`eta` must be .* but is 2"),
        (sample_grid, "--output {folder}/grid.xyz", "--output must be the name of a picture, .*grid.xyz"),
        (sample_grid, "--output {folder}", "--output must be the name of a picture"),
        (sample_grid, "--output {folder}/file/grid.png", "file"),
        (policy_gradient, "--num_inference_steps 2000", "2000"),
        (policy_gradient, "--num_inference_steps 0", "--num_inference_steps must be positive, but is 0"),
        (policy_gradient, "--output_dir {folder}/file", "file"),
    ],
)
def test_wrong_argument_is_a_line_before_any_work(script, arguments, message, pipeline, tmp_path, monkeypatch, capsys):
    """And no traceback, where the script is started."""
    pipeline.save_pretrained(tmp_path / "model")
    (tmp_path / "file").touch()
    monkeypatch.setattr(UNet2DModel, "forward", lambda *_, **__: pytest.fail("images were made"))
    options = arguments.format(folder=tmp_path).split()
    output = {sample_grid: "--output", policy_gradient: "--output_dir"}[script]
    output = [] if output in options else [output, str(tmp_path / "out" / "grid.png")]
    monkeypatch.setattr(sys, "argv", [script.__file__, str(tmp_path / "model"), *options, *output])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(script.__file__, run_name="__main__")
    line = f"{stopped.value.code}\n{capsys.readouterr().err}"
    assert re.search(rf"error: .*{message}", line), line


@pytest.mark.parametrize(
    "scheduler_class", [EtaDDIMScheduler, pytest.param(EtaFlowMatchScheduler, marks=pytest.mark.slow)]
)
def test_policy_gradient_raises_the_reward(unet, scheduler_class, tmp_path):
    EtaDDIMPipeline(copy.deepcopy(unet), scheduler_class()).save_pretrained(tmp_path / "model")
    arguments = f"{tmp_path / 'model'} --output_dir {tmp_path / 'tuned'} --num_rounds 4 --batch_size 64"
    rewards = policy_gradient.main([*arguments.split(), "--num_inference_steps", "5", "--learning_rate", "3e-3"])
    assert rewards[-1] > rewards[0] + 0.1
    assert (tmp_path / "tuned" / "grid.png").is_file()
    assert (tmp_path / "tuned" / "model_index.json").is_file()


@pytest.mark.parametrize("solver_order", [1, 3])
@pytest.mark.parametrize("scheduler_class", [EtaDDIMScheduler, EtaFlowMatchScheduler])
def test_policy_gradient_of_a_model_with_a_history(unet, scheduler_class, solver_order, tmp_path):
    """Fitted samplers and those of a higher order take the steps of a loop in turn: it goes by steps of order 1."""
    pipeline = EtaDDIMPipeline(copy.deepcopy(unet), scheduler_class(solver_order=solver_order))
    if solver_order == 1:
        pipeline.scheduler = fitting.fit_sampler(pipeline, [2], teacher_steps=4, seeds=2)
    pipeline.save_pretrained(tmp_path / "model")
    arguments = f"{tmp_path / 'model'} --output_dir {tmp_path / 'tuned'} --num_rounds 1 --batch_size 2"
    assert len(policy_gradient.main([*arguments.split(), "--num_inference_steps", "3"])) == 1


@pytest.mark.parametrize("arguments", ["--eta 0", "--eta 1.5", "--batch_size 1", "--num_rounds -1"])
def test_policy_gradient_refuses(arguments, capsys):
    with pytest.raises(SystemExit):
        policy_gradient.main(["nowhere", *arguments.split()])
    assert arguments.split()[0] in capsys.readouterr().err
