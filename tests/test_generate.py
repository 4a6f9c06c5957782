"""Images by seed: the same files for any number of processes and after any stop; bad input is refused before that."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from accelerate.state import PartialState
from diffusers import DDPMScheduler

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, generation, image_generators
from ddim_scheduler.image_files import read_image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import generate

OPTIONS = ["--num_images", "11", "--batch_size", "4", "--num_inference_steps", "3", "--eta", "0.5", "--seed", "7"]


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    PartialState._shared_state.clear()


@pytest.fixture(scope="session")
def model(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate") / "model"
    EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def whole(model, tmp_path_factory):
    """The images of `OPTIONS`, by one process in one go."""
    folder = tmp_path_factory.mktemp("generate") / "whole"
    assert generate.main([str(model), *OPTIONS, "--output_dir", str(folder)]) == 11
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels(folder):
    return np.stack([np.asarray(PIL.Image.open(path)) for path in sorted(folder.glob("*.png"))]).astype(int)


def test_images_are_those_of_the_pipeline(model, whole):
    assert sorted(contents(whole)) == [*(f"{k:06d}.png" for k in range(11)), "settings.json"]
    pipeline = EtaDDIMPipeline.from_pretrained(model)
    images = pipeline(11, num_inference_steps=3, eta=0.5, seed=7).images
    difference = np.abs(pixels(whole) - np.stack([np.asarray(image) for image in images]).astype(int))
    assert difference.max() <= 1  # another batch size: a sum may be rounded the other way
    assert (difference > 0).mean() < 1e-3


def test_images_without_clipping(model, whole, tmp_path):
    generate.main([str(model), *OPTIONS, "--no-clip_sample", "--output_dir", str(tmp_path / "images")])
    pipeline = EtaDDIMPipeline.from_pretrained(model)
    pipeline.scheduler.register_to_config(clip_sample=False)
    images = pipeline(4, num_inference_steps=3, eta=0.5, generator=image_generators(7, range(4))).images
    assert (pixels(tmp_path / "images")[:4] == np.stack([np.asarray(image) for image in images])).all()
    assert (pixels(tmp_path / "images") != pixels(whole)).any()


def test_two_processes_write_the_same_files(model, whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [generate.__file__, str(model), *OPTIONS, "--output_dir", str(tmp_path / "images")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    printed = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    assert "this process made 7 of them" in printed  # two batches of three, the last one of 3 images
    assert contents(tmp_path / "images") == contents(whole)


def test_killed_run_goes_on_where_it_was(model, tmp_path):
    """None of the images is lost or made twice, and no file is half of one."""
    folder = tmp_path / "images"
    arguments = [str(model), "--num_inference_steps", "20", "--output_dir", str(folder), "--num_images", "600"]
    arguments += ["--batch_size", "20"]
    process = subprocess.Popen([sys.executable, generate.__file__, *arguments])
    while len(list(folder.glob("0*.png"))) < 45:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.glob("0*.png")}
    assert len(before) < 600

    arguments[-3] = "60"
    for path in sorted(before)[60:]:
        path.unlink()
        del before[path]
    (folder / "unfinished-0-1.png").write_bytes(b"half")
    assert generate.main(arguments) == 60 - len(before)
    assert all((path.stat().st_mtime_ns, path.read_bytes()) == state for path, state in before.items())
    assert len(list(folder.iterdir())) == 61
    again = tmp_path / "again"
    generate.main([*arguments[:4], str(again), *arguments[5:]])
    assert contents(again) == contents(folder)


def test_npz_holds_the_images(model, whole, tmp_path):
    file = tmp_path / "new" / "images.npz"
    assert generate.main([str(model), *OPTIONS, "--output_dir", str(whole), "--npz", str(file)]) == 0
    array = np.load(file)["arr_0"]
    assert array.dtype == np.uint8
    assert array.shape == (11, 16, 16, 1)
    assert (array[..., 0] == pixels(whole)).all()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (["--eta", "0.4"], "eta"),
        (["--seed", "8"], "seed"),
        (["--num_inference_steps", "4"], "num_inference_steps"),
        (["--timestep_spacing", "trailing"], "scheduler_config.timestep_spacing"),
        (["--no-clip_sample"], "scheduler_config.clip_sample"),
        (["--eta", "1", "--sigma_hat"], "eta"),
        (["--scheduler", "DDIMScheduler"], "scheduler"),
        (["--dtype", "bfloat16"], "dtype"),
        (["--num_images", "10"], "output_dir"),
    ],
)
def test_refuses_to_mix_settings(change, name, model, whole):
    before = contents(whole)
    with pytest.raises(ValueError, match=f"^`{name}`"):
        generate.main([str(model), *OPTIONS, "--output_dir", str(whole), *change])
    assert contents(whole) == before


def test_refuses_a_model_that_was_trained_further(model, tmp_path):
    pipeline = EtaDDIMPipeline.from_pretrained(model)
    pipeline.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), *OPTIONS, "--output_dir", str(tmp_path / "images")]
    generate.main(arguments)
    next(pipeline.unet.parameters()).data[0] += 1e-6
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"^`weights`"):
        generate.main(arguments)


def test_model_may_move(model, tmp_path):
    arguments = [*OPTIONS, "--output_dir", str(tmp_path / "images")]
    generate.main([str(model), *arguments])
    shutil.copytree(model, tmp_path / "moved")
    assert generate.main([str(tmp_path / "moved"), *arguments]) == 0


def test_refuses_images_that_are_not_finite(model, tmp_path):
    pipeline = EtaDDIMPipeline.from_pretrained(model)
    next(pipeline.unet.parameters()).data[0] = math.nan
    pipeline.save_pretrained(tmp_path / "model")
    arguments = [*OPTIONS, "--output_dir", str(tmp_path / "images")]
    with pytest.raises(ValueError, match="4 of 4 images are not finite"):
        generate.main([str(tmp_path / "model"), *arguments])
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["settings.json"]


def test_second_run_of_other_settings_is_refused_before_there_is_an_image(model, tmp_path, monkeypatch):
    """Also if both found the folder empty."""
    arguments = [str(model), *OPTIONS, "--output_dir", str(tmp_path / "images")]
    monkeypatch.setattr(generation, "image_generators", lambda *_: pytest.fail("a run made images"))
    check, others = generation.check_output_dir, []

    def check_after_another_run(output_dir, num_images, settings, suffix):
        check(output_dir, num_images, settings)
        if not others:
            others.append({**settings, "eta": 0.25})
            output_dir.mkdir()
            (output_dir / "settings.json").write_text(json.dumps(others[0]))

    monkeypatch.setattr(generation, "check_output_dir", check_after_another_run)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^`eta` is 0.5, but 0.25 .* delete it"):
            generate.main(arguments)
    assert json.loads((tmp_path / "images" / "settings.json").read_text()) == others[0]


def test_refuses_a_learned_variance_with_the_built_in(small_unet, tmp_path):
    unet = small_unet(in_channels=1, out_channels=2)
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(variance_type="learned_range"))
    pipeline.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / "model"), *OPTIONS, "--output_dir", str(tmp_path / "images")]
    with pytest.raises(ValueError, match="`scheduler` DDIMScheduler knows no learned variance"):
        generate.main([*arguments, "--scheduler", "DDIMScheduler"])
    assert not (tmp_path / "images").exists()
    assert generate.main(arguments) == 11


@pytest.mark.parametrize("channels", [2, 5])
def test_images_that_no_picture_shows_are_arrays(small_unet, tmp_path, channels):
    """Which the training reads; a second run makes none again."""
    unet = small_unet(in_channels=channels, out_channels=channels)
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    folder, npz = tmp_path / "images", tmp_path / "all.npz"
    arguments = [str(tmp_path / "model"), "--output_dir", str(folder), "--num_images", "3", "--npz", str(npz)]
    arguments += ["--num_inference_steps", "2"]
    assert [generate.main(arguments), generate.main(arguments)] == [3, 0]
    images = pipeline(3, num_inference_steps=2, seed=0, output_type="np").images
    assert np.abs(np.stack([np.load(folder / f"{k:06d}.npy") for k in range(3)]) - images).max() < 1e-6
    assert np.abs(np.load(npz)["arr_0"] - images).max() < 1e-6
    assert read_image(folder / "000000.npy").pixels.shape == (channels, 8, 8)


def test_another_run_may_end_first(tmp_path):
    """It cleans up, and with that takes the unfinished file of an image that it has made itself."""
    path = tmp_path / "000000.png"

    def save(file):
        path.write_bytes(b"of the other run")
        (unfinished,) = tmp_path.glob("unfinished-*")
        unfinished.unlink()

    generation.write(path, 0, save)
    assert [file.name for file in tmp_path.iterdir()] == ["000000.png"]


def test_refuses_damaged_settings(model, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "images")
    for text in ("{", "3"):
        (tmp_path / "images" / "settings.json").write_text(text)
        with pytest.raises(ValueError, match=r"settings\.json cannot be read"):
            generate.main([str(model), *OPTIONS, "--output_dir", str(tmp_path / "images")])


def test_refuses_a_folder_of_something_else(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="output_dir"):
        generate.main([str(model), *OPTIONS, "--output_dir", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        "--num_images 0",
        "--batch_size 0",
        "--num_inference_steps -1",
        "--seed -1",
        "--eta 1.5",
        "--sigma_hat",
        "--npz images.npy",
        "--npz images/all.npz",
        "--npz images/deeper/all.npz",
    ],
)
def test_refuses_bad_arguments(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        generate.main(["nowhere", "--output_dir", "images", *arguments.split()])
    assert arguments.split()[0] in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_refuses_more_steps_than_there_are_before_anything_is_written(model, tmp_path):
    with pytest.raises(ValueError, match="num_inference_steps"):
        generate.main([str(model), "--output_dir", str(tmp_path / "images"), "--num_inference_steps", "1001"])
    assert not list(tmp_path.iterdir())


def test_class_conditional_pipeline_of_ddpm(small_unet, tmp_path):
    """The classes take turns, and the scheduler of a DDPM is converted."""
    unet = small_unet(in_channels=3, out_channels=3, num_class_embeds=3)
    pipeline = EtaDDIMPipeline(unet=unet, scheduler=DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    folder = tmp_path / "images"
    arguments = [
        str(tmp_path / "model"),
        "--output_dir",
        str(folder),
        "--num_images",
        "5",
        "--num_inference_steps",
        "2",
    ]
    generate.main(arguments)
    images = pipeline(5, num_inference_steps=2, seed=0, class_labels=[0, 1, 0, 1, 0]).images  # 2 means no class
    assert (pixels(folder) == np.stack([np.asarray(image) for image in images])).all()
    assert json.loads((folder / "settings.json").read_text())["scheduler"] == "EtaDDIMScheduler"
    with pytest.raises(ValueError, match="`num_classes` is 3, but 2 for the images"):
        generate.main([*arguments, "--num_classes", "3"])
    with pytest.raises(ValueError, match="`num_classes` is 4, but the UNet has 3"):
        generate.main([*arguments, "--num_classes", "4"])


def test_guided_images_of_given_classes(small_unet, tmp_path):
    pipeline = EtaDDIMPipeline(unet=small_unet(num_class_embeds=4), scheduler=EtaDDIMScheduler())
    pipeline.save_pretrained(tmp_path / "model")
    folder = tmp_path / "images"
    arguments = f"{tmp_path / 'model'} --output_dir {folder} --num_images 3 --num_inference_steps 2".split()
    generate.main([*arguments, "--class_labels", "2", "0", "--guidance_scale", "2.5"])
    images = pipeline(3, 2, seed=0, class_labels=[2, 0, 2], guidance_scale=2.5).images
    assert (pixels(folder) == np.stack([np.asarray(image) for image in images])).all()
    for options, name in (
        (["--class_labels", "2", "0"], "guidance_scale"),
        (["--class_labels", "0", "--guidance_scale", "2.5"], "class_labels"),
        (["--guidance_scale", "2.5"], "class_labels"),
    ):
        with pytest.raises(ValueError, match=f"`{name}` is .* for the images in"):
            generate.main([*arguments, *options])
