"""The training script on several processes, and after what happens to them: kill -9, Ctrl-C, a disk that is full."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from accelerate import Accelerator

from ddim_scheduler import EtaDDIMPipeline
from ddim_scheduler.training import list_checkpoints
from ddim_scheduler.training.train_unconditional import main

from training import EXAMPLES, TINY, train, write_classifier, write_images


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """What evaluates a run: 40 images, since the features are 32, and their network."""
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "images").mkdir()
    write_images(folder / "images", 40)
    options = ("--train_data_dir", folder / "images", "--eval_num_images", 33, "--eval_features", "digits")
    return (*options, "--eval_weights", write_classifier(folder / "classifier.safetensors"))


@pytest.fixture(scope="module")
def server():
    """Forks processes that have imported the script already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["training"])
        first = context.Process(target=print)  # waits for the imports
        first.start()
        first.join()
        yield context


def run_rank(arguments: list[str], environment: dict[str, str]):
    os.environ.update(environment)
    main(arguments)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(server, num_processes: int, *arguments) -> list:
    """Starts the processes of one run as torchrun does."""
    port, processes = free_port(), []
    for rank in range(num_processes):
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        environment |= {name: str(num_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
        environment |= {name: str(rank) for name in ("RANK", "LOCAL_RANK")}
        environment = environment if num_processes > 1 else {}
        process = server.Process(target=run_rank, args=([*TINY, *map(str, arguments)], environment))
        process.start()
        processes.append(process)
    return processes


def finish(processes: list, timeout: float = 120):
    for process in processes:
        process.join(timeout)
    assert [process.exitcode for process in processes] == [0] * len(processes)


def read_losses(output_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output_dir / "logs" / "losses.jsonl").read_text().splitlines()]


def result(output_dir: Path):
    """All that must not depend on what happened: weights, EMA, optimizer, schedule, losses, pictures, to the bit."""
    last = list_checkpoints(output_dir)[-1]
    sums = json.loads((last / "checksums.json").read_text())
    pictures = {path.name: path.read_bytes() for path in (output_dir / "samples").iterdir()}
    weights = (output_dir / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    state = {name: crc for name, crc in sums.items() if not name.startswith("random_states")}
    assert {"model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl"} <= set(state)
    return last.name, state, weights, pictures, (output_dir / "logs" / "losses.jsonl").read_text()


# --------------------------------------------------------------------------------------------------------------- kills


@pytest.mark.parametrize(
    ("num_processes", "kills"),
    [(1, 3), (2, 1), *(pytest.param(n, 20, marks=pytest.mark.slow) for n in (1, 2))],
)
def test_killed_run_equals_the_uninterrupted_one(server, evaluation, tmp_path, num_processes, kills):
    """Every other kill comes while a checkpoint is written, the others at any moment."""
    common = (*evaluation, "--eval_every", 3, "--max_train_steps", 14, "--checkpointing_steps", 2, "--random_flip")
    common += ("--checkpoints_total_limit", 2, "--save_images_steps", 6, "--logging_steps", 1)
    common += ("--timestep_spacing", "trailing")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin = time.monotonic()
    finish(start(server, num_processes, *common, "--output_dir", whole))
    duration = time.monotonic() - begin
    expected = result(whole)
    assert expected[0] == "checkpoint-14"
    assert len(expected[-1].splitlines()) == 14 + 5

    rng = random.Random(0)
    done = 0
    command = (*common, "--output_dir", killed, "--resume_from_checkpoint", "latest")
    while done < kills:
        processes = start(server, num_processes, *command)
        deadline = time.monotonic() + rng.uniform(0.3, 1) * duration
        while_saving = done % 2 == 1
        while all(process.is_alive() for process in processes):
            is_saving = any(killed.glob("unfinished-checkpoint-*"))
            if time.monotonic() > deadline and (is_saving or not while_saving):
                break
            time.sleep(0.0005)
        if while_saving:
            time.sleep(rng.uniform(0, 0.01))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if list_checkpoints(killed):
            EtaDDIMPipeline.from_pretrained(killed)
        if all(process.exitcode == -signal.SIGKILL for process in processes):
            done += any(killed.glob("unfinished-checkpoint-*")) or not while_saving
        else:  # it was faster than the kill
            assert result(killed) == expected
            shutil.rmtree(killed)
    finish(start(server, num_processes, *command))
    assert result(killed) == expected
    assert not list(killed.glob("unfinished*"))
    assert len(list_checkpoints(killed)) == 2


# ----------------------------------------------------------------------------------------------------- two processes


def test_two_processes_equal_one_of_the_same_global_batch(server, image_folder, tmp_path, record_property):
    common = ("--train_data_dir", image_folder, "--max_train_steps", 20, "--logging_steps", 1, "--random_flip")
    common += ("--class_conditional", "--noise_offset", 0.1, "--eval_batch_size", 5, "--timestep_spacing", "trailing")
    finish(start(server, 1, *common, "--output_dir", tmp_path / "one", "--train_batch_size", 8))
    finish(start(server, 2, *common, "--output_dir", tmp_path / "two", "--train_batch_size", 4))
    one, two = (read_losses(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 20
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        differences = [abs(first[name] - second[name]) for name in first]
        record_property("largest difference of a logged value", max(differences))
        assert max(differences) < 1e-5
    one, two = (np.asarray(PIL.Image.open(tmp_path / name / "sample.png"), dtype=float) for name in ("one", "two"))
    assert np.abs(one - two).max() <= 2  # of 255
    assert one.shape[:2] == (5 * 16, 16)


def test_evaluation_of_two_processes_equals_that_of_one(server, evaluation, tmp_path, record_property):
    common = (*evaluation, "--max_train_steps", 4, "--eval_every", 2, "--eval_batch_size", 7)
    finish(start(server, 1, *common, "--output_dir", tmp_path / "one", "--train_batch_size", 8))
    finish(start(server, 2, *common, "--output_dir", tmp_path / "two", "--train_batch_size", 4))
    one, two = ([x for x in read_losses(tmp_path / name) if "eval/kernel" in x] for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two] == [2, 4]
    for name in ("eval/frechet", "eval/kernel"):
        differences = [abs(a[name] / b[name] - 1) for a, b in zip(one, two, strict=True)]
        record_property(f"largest relative difference of {name}", max(differences))
        assert max(differences) < 1e-2


def test_preview_of_three_processes_equals_that_of_one(server, image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--max_train_steps", 1, "--eval_batch_size", 7)
    finish(start(server, 1, *common, "--output_dir", tmp_path / "one", "--train_batch_size", 12))
    finish(start(server, 3, *common, "--output_dir", tmp_path / "three"))
    one, three = (np.asarray(PIL.Image.open(tmp_path / n / "sample.png"), dtype=float) for n in ("one", "three"))
    assert one.shape[:2] == (7 * 16, 16)
    assert np.abs(one - three).max() <= 2  # of 255


@pytest.mark.parametrize("accumulation", [1, 4])
def test_learning_rate_counts_optimizer_steps_of_two_processes(server, image_folder, tmp_path, accumulation):
    common = ("--train_data_dir", image_folder, "--max_train_steps", 8, "--logging_steps", 1, "--output_dir", tmp_path)
    finish(start(server, 2, *common, "--gradient_accumulation_steps", accumulation, "--eval_batch_size", 1))
    expected = [0.5, 1.0, *(0.5 * (1 + np.cos(np.pi * k / 6)) for k in range(1, 7))]
    rates = [line["lr"] for line in read_losses(tmp_path)]
    assert np.abs(np.array(rates) / 1e-3 - expected).max() < 1e-6


def test_accelerate_launch_resumes_two_processes(server, image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--max_train_steps", 6, "--checkpointing_steps", 2)
    common += ("--save_images_steps", 2, "--logging_steps", 1, "--timestep_spacing", "trailing")
    finish(start(server, 2, *common, "--output_dir", tmp_path / "whole"))
    shutil.copytree(
        tmp_path / "whole", tmp_path / "part", ignore=shutil.ignore_patterns("unet", "*-[46]", "*-00000[46].*")
    )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", free_port(), "--config_file"]
    command += [EXAMPLES / "accelerate_configs" / "cpu_2_processes.yaml", EXAMPLES / "train_unconditional.py", *TINY]
    command += [*common, "--output_dir", tmp_path / "part", "--resume_from_checkpoint", "latest"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(map(str, command), check=True, env=environment, capture_output=True, text=True).stderr
    assert "2 x cpu, step 2 of 6" in printed
    assert result(tmp_path / "part") == result(tmp_path / "whole")


# --------------------------------------------------------------------------------------- checkpoints that are not whole


@pytest.fixture(scope="module")
def trained(image_folder, tmp_path_factory):
    """The options of a run of four steps with two checkpoints, and its folder, in which nothing is changed."""
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 4, "--checkpointing_steps", 2)
    common += ("--timestep_spacing", "trailing")
    folder = tmp_path_factory.mktemp("trained") / "model"
    train(*common, "--output_dir", folder)
    return common, folder


@pytest.fixture
def copied(trained, tmp_path):
    """The options of that run in a copy of its folder, and what it should be."""
    common, folder = trained
    shutil.copytree(folder, tmp_path / "model")
    return (*common, "--output_dir", tmp_path / "model"), result(folder)


@pytest.mark.parametrize("damage", ["half a file", "a flipped bit", "a missing file", "an empty folder"])
def test_broken_checkpoint_is_skipped(copied, tmp_path, caplog, damage):
    common, expected = copied
    file = tmp_path / "model" / "checkpoint-4" / "optimizer.bin"
    content = file.read_bytes()
    if damage == "half a file":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "a flipped bit":
        file.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    elif damage == "a missing file":
        file.unlink()
    else:
        shutil.rmtree(file.parent)
        file.parent.mkdir()
    train(*common, "--resume_from_checkpoint", "latest")
    assert "checkpoint-4 is not whole and is not used" in caplog.text
    assert "step 2 of 4" in caplog.text
    assert result(tmp_path / "model") == expected


def test_no_whole_checkpoint_is_an_error(copied, tmp_path):
    common, _ = copied
    for checkpoint in list_checkpoints(tmp_path / "model"):
        (checkpoint / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        train(*common, "--resume_from_checkpoint", "latest")


def test_run_that_ended_before_its_pipeline_was_saved(copied, tmp_path):
    common, expected = copied
    shutil.rmtree(tmp_path / "model" / "unet")
    train(*common, "--resume_from_checkpoint", "latest")
    assert result(tmp_path / "model") == expected


def test_full_disk(copied, tmp_path, monkeypatch):
    """The second checkpoint meets a limit on the size of files, as near to a full disk as a test may go."""
    common, expected = copied
    shutil.rmtree(tmp_path / "model")
    save_state, limits = Accelerator.save_state, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_to_full_disk(self, folder):
        if folder.endswith("checkpoint-4"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        return save_state(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", save_to_full_disk)
        try:
            with pytest.raises(OSError, match="checkpoint-4 cannot be written"):
                train(*common)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "model").glob("*checkpoint*")] == ["checkpoint-2"]
    train(*common, "--resume_from_checkpoint", "latest")
    assert result(tmp_path / "model") == expected


def test_folder_without_write_permission(image_folder):
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            with pytest.raises(ValueError, match=r"`output_dir` .* cannot be written: no permission"):
                train("--train_data_dir", EXAMPLES, "--output_dir", Path(folder, "model"))
        finally:
            os.seteuid(user)
        assert not os.listdir(folder)


def test_second_run_in_the_folder_is_refused(server, image_folder, tmp_path):
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logger", "none")
    (process,) = start(server, 1, *common, "--max_train_steps", 100000, "--save_images_steps", 100000)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "logs" / "losses.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        files = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
        for option in (("--resume_from_checkpoint", "latest"), ("--overwrite_output_dir",)):
            with pytest.raises(ValueError, match=r"`output_dir` .* is in use by another run"):
                train(*common, *option)
        assert {path: path.read_bytes() for path in files} == files
    finally:
        process.kill()
        process.join()
    train(*common, "--max_train_steps", 1, "--resume_from_checkpoint", "latest")  # the kill has freed the folder


# -------------------------------------------------------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_saves_and_says_how_to_go_on(image_folder, tmp_path, monkeypatch, caplog, number):
    common = ("--train_data_dir", image_folder, "--logger", "none", "--max_train_steps", 6, "--save_images_steps", 6)
    common += ("--timestep_spacing", "trailing", "--logging_steps", 1)
    train(*common, "--output_dir", tmp_path / "whole")
    log, handler = Accelerator.log, signal.getsignal(number)

    def log_and_interrupt(self, values, step):
        if step == 3:
            signal.raise_signal(number)
        log(self, values, step=step)

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "log", log_and_interrupt)
        secret_or_done = ["--overwrite_output_dir", "--hub_token", "hf_secret", "--resume_from_checkpoint=x"]
        patch.setattr(sys, "argv", ["train.py", "--a b", *secret_or_done, "--b"])
        with pytest.raises(SystemExit, match="130"):
            train(*common, "--output_dir", tmp_path / "model")
    assert signal.getsignal(number) is handler
    assert "Stopped at step 4" in caplog.text
    assert "Continue by: python train.py '--a b' --b --resume_from_checkpoint latest\n" in caplog.text
    assert [path.name for path in (tmp_path / "model").glob("*checkpoint*")] == ["checkpoint-4"]
    train(*common, "--output_dir", tmp_path / "model", "--resume_from_checkpoint", "latest")
    assert result(tmp_path / "model") == result(tmp_path / "whole")
