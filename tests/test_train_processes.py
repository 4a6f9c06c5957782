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

import pytest
from accelerate import Accelerator

from training import EXAMPLES, TINY, forget_accelerator, train, train_unconditional, write_images


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    forget_accelerator()


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    """Forks processes that have imported the script already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(EXAMPLES), str(Path(__file__).parent)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["training"])
        first = context.Process(target=print)  # waits for the imports
        first.start()
        first.join()
        yield context


def run_rank(arguments: list[str], environment: dict[str, str]):
    os.environ.update(environment)
    train_unconditional.main(arguments)


def start(server, num_processes: int, *arguments) -> list:
    """Starts the processes of one run as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
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


def result(output_dir: Path):
    """All that must not depend on what happened: weights, EMA, optimizer, schedule, losses, pictures, to the bit."""
    last = train_unconditional.list_checkpoints(output_dir)[-1]
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
def test_killed_run_equals_the_uninterrupted_one(server, image_folder, tmp_path, num_processes, kills):
    """Every other kill comes while a checkpoint is written, the others at any moment."""
    common = ("--train_data_dir", image_folder, "--max_train_steps", 14, "--checkpointing_steps", 2, "--random_flip")
    common += ("--checkpoints_total_limit", 2, "--save_images_steps", 6, "--logging_steps", 1)
    common += ("--timestep_spacing", "trailing")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    begin = time.monotonic()
    finish(start(server, num_processes, *common, "--output_dir", whole))
    duration = time.monotonic() - begin
    expected = result(whole)
    assert expected[0] == "checkpoint-14"
    assert len(expected[-1].splitlines()) == 14

    rng = random.Random(0)
    done, while_saving = 0, 0
    command = (*common, "--output_dir", killed, "--resume_from_checkpoint", "latest")
    while done < kills:
        processes = start(server, num_processes, *command)
        deadline = time.monotonic() + rng.uniform(0.3, 1) * duration
        wait_for_save = done % 2 == 1
        while all(process.is_alive() for process in processes):
            is_saving = any(killed.glob("unfinished-checkpoint-*"))
            if time.monotonic() > deadline and (is_saving or not wait_for_save):
                break
            time.sleep(0.0005)
        if wait_for_save:
            time.sleep(rng.uniform(0, 0.02))
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        if all(process.exitcode == -signal.SIGKILL for process in processes):
            done += 1
            while_saving += any(killed.glob("unfinished-checkpoint-*"))
        else:  # it was faster than the kill
            assert result(killed) == expected
            shutil.rmtree(killed)
    if kills > 1:
        assert while_saving > 0
    finish(start(server, num_processes, *command))
    assert result(killed) == expected
    assert not list(killed.glob("unfinished*"))
    assert len(train_unconditional.list_checkpoints(killed)) == 2
