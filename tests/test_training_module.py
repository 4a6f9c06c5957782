"""Training as a module of the package: without the clone, as a copy, and without the optional packages."""

import configparser
import importlib.util
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ddim_scheduler import EtaDDIMPipeline, evaluation
from ddim_scheduler.training import ImageDataset, find_dataset_images, list_checkpoints, train_unconditional

from training import TINY, forget_accelerator

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The environment of a process that finds the package as `pip install .` would put it, and not in this clone."""
    site = tmp_path_factory.mktemp("site")
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    roots = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    for package in setup["options"]["packages"].split():
        source = ROOT / roots.get(package, package.replace(".", "/"))
        target = site / package.replace(".", "/")
        target.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.py"):
            shutil.copy(file, target)
    return {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}


def test_module_trains_without_the_clone_and_says_how_to_go_on(elsewhere, image_folder, tmp_path):
    """Stopped by Ctrl-C, it goes on by the options that it printed."""
    output_dir = tmp_path / "a model"
    options = [*TINY, "--train_data_dir", str(image_folder), "--output_dir", str(output_dir), "--logger", "none"]
    options += ["--logging_steps", "1", "--max_train_steps", "100"]
    command = [sys.executable, "-m", "ddim_scheduler.training", *options]
    process = subprocess.Popen(command, cwd=tmp_path, env=elsewhere, stderr=subprocess.PIPE, text=True)
    losses = output_dir / "logs" / "losses.jsonl"
    while not (losses.is_file() and losses.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130
    (stopped,) = list_checkpoints(output_dir)
    assert "The run stops after this step" in printed
    line = next(line for line in printed.splitlines() if "Continue by: " in line)
    going_on = shlex.split(line.partition("by: ")[2])
    assert going_on == [*command, "--resume_from_checkpoint", "latest"]
    forget_accelerator()
    train_unconditional.main(going_on[3:])  # after `python -m ddim_scheduler.training`
    assert [path.name for path in list_checkpoints(output_dir)] == [stopped.name, "checkpoint-100"]
    assert EtaDDIMPipeline.from_pretrained(output_dir).unet.config.sample_size == 16


@pytest.mark.parametrize(
    "start",
    [
        partial(runpy.run_module, "ddim_scheduler.training"),
        partial(runpy.run_path, str(ROOT / "examples" / "train_unconditional.py")),
    ],
    ids=["module", "script"],
)
def test_wrong_input_is_one_line(image_folder, tmp_path, monkeypatch, start):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train", "--train_data_dir", str(image_folder), "--train_batch_size", "17"])
    forget_accelerator()
    with pytest.raises(SystemExit, match=r"^error: `train_batch_size` over all processes is 17, but there are 16"):
        start(run_name="__main__")
    assert not list(tmp_path.iterdir())


def test_loop_can_be_copied(image_folder, tmp_path):
    shutil.copy(train_unconditional.__file__, tmp_path / "my_training.py")
    spec = importlib.util.spec_from_file_location("my_training", tmp_path / "my_training.py")
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    forget_accelerator()
    options = ["--train_data_dir", str(image_folder), "--output_dir", str(tmp_path / "model"), "--logger", "none"]
    copy.main([*TINY, *options, "--max_train_steps", "1"])
    assert (tmp_path / "model" / "model_index.json").is_file()


def test_optional_packages_are_imported_where_they_are_needed(elsewhere, tmp_path):
    """And not with the package, whose modules are all there without the clone."""
    modules = ("ddim_scheduler.evaluation", "ddim_scheduler.generation", "ddim_scheduler.training.train_unconditional")
    optional = ("datasets", "matplotlib", "tensorboard", "torchmetrics")
    code = (
        f"import sys, {', '.join(modules)}\n"
        f"print(*(sys.modules[name].__file__ for name in {modules}), sep='\\n')\n"
        f"print([name for name in {optional} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, cwd=tmp_path, env=elsewhere, capture_output=True, text=True)
    *files, imported = done.stdout.splitlines()
    assert len(files) == 3
    assert all(Path(file).is_relative_to(elsewhere["PYTHONPATH"]) for file in files)
    assert imported == "[]"


def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch):
    for name in ("datasets", "psutil", "torchmetrics", "torchmetrics.image.fid", "torchmetrics.image.kid"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r'needs datasets: pip install "ddim-scheduler\[train\]"'):
        find_dataset_images("some/set")
    PIL.Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImportError, match=r'needs psutil: pip install "ddim-scheduler\[train\]"'):
        ImageDataset([tmp_path / "a.png"], [0], resolution=[8, 8])
    features = np.random.default_rng(0).random((9, 2))
    for distance in (evaluation.frechet_distance, evaluation.kernel_distance):
        with pytest.raises(ImportError, match=r'needs torchmetrics: pip install "ddim-scheduler\[eval\]"'):
            distance(torch.from_numpy(features), torch.from_numpy(features))
