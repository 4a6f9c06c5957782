"""How a run behaves: what it writes and when, what it says, what may change when it resumes, and where it starts."""

import ctypes
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, tracking
from diffusers import UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file

from ddim_scheduler import EtaDDIMPipeline, EtaDDIMScheduler, training
from ddim_scheduler.training import options, signals, trackers, train_unconditional

from training import forget_accelerator, train


@pytest.fixture(autouse=True)
def _fresh_accelerate_state():
    forget_accelerator()


def lines(output_dir: Path, name: str = "losses") -> list[dict]:
    return [json.loads(line) for line in (output_dir / "logs" / f"{name}.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------------- the model on the way


def test_scheduler_is_replaced_before_the_weights(pipeline, tmp_path, monkeypatch):
    """So that samplers that were fitted to other weights are never beside them, wherever the run is killed."""
    training.write_pipeline(pipeline, tmp_path)
    replaced, replace = [], Path.replace

    def recorded(self, target):
        if "unfinished" not in str(target):
            replaced.append(target.name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", recorded)
    for is_reversed in (False, True):
        files = Path.rglob
        with monkeypatch.context() as patch:
            patch.setattr(Path, "rglob", lambda *a, f=files, r=is_reversed: sorted(f(*a), reverse=r))
            training.write_pipeline(pipeline, tmp_path)
        assert replaced[0] == "scheduler_config.json"
        assert replaced[-1] == "model_index.json"
        assert "diffusion_pytorch_model.safetensors" in replaced
        replaced.clear()


def test_folder_can_be_loaded_at_every_moment_after_the_first_checkpoint(image_folder, tmp_path, monkeypatch):
    """Between any two renamings; and the weights are the EMA's of a checkpoint, the former one or the new one."""
    output_dir, replace, seen = tmp_path / "model", Path.replace, []

    def replace_and_load(self, target):
        replace(self, target)
        if output_dir in Path(target).parents and training.list_checkpoints(output_dir):
            pipeline = EtaDDIMPipeline.from_pretrained(output_dir)
            seen.append((len(training.list_checkpoints(output_dir)), pipeline.unet.conv_in.weight.detach().clone()))

    monkeypatch.setattr(Path, "replace", replace_and_load)
    common = ("--train_data_dir", image_folder, "--output_dir", output_dir, "--logger", "none")
    train(*common, "--max_train_steps", 2, "--checkpointing_steps", 1, "--save_images_steps", 9)
    averages = []
    for checkpoint in training.list_checkpoints(output_dir):
        state = torch.load(checkpoint / "custom_checkpoint_0.pkl", weights_only=True)
        ema = EMAModel([torch.nn.Parameter(p) for p in state["shadow_params"]])
        unet = EtaDDIMPipeline.from_pretrained(output_dir).unet
        ema.copy_to(unet.parameters())
        averages.append(unet.conv_in.weight.detach())
    assert len(averages) == 2
    assert len(seen) > 20
    for number, weight in seen:
        assert any(torch.equal(weight, average) for average in averages[number - 1 : number + 1])
    assert torch.equal(seen[-1][1], averages[-1])


def test_pipeline_that_cannot_be_written_leaves_the_former_one(pipeline, tmp_path, monkeypatch):
    training.write_pipeline(pipeline, tmp_path)
    code = {path.name for path in tmp_path.glob("*.py")}
    (tmp_path / "ddim_old_00000000.py").touch()
    training.write_pipeline(pipeline, tmp_path)  # and clears the code of another version away
    assert {path.name for path in tmp_path.glob("*.py")} == code
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(EtaDDIMPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match=r"cannot be written .*No space left"):
        training.write_pipeline(pipeline, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# --------------------------------------------------------------------------------------------------------------- resume


def test_resumed_run_says_what_changed_and_takes_another_rate(image_folder, tmp_path, caplog):
    """By the name of the checkpoint alone; the rate is on the new schedule at once."""
    output_dir = tmp_path / "model"
    common = ("--train_data_dir", image_folder, "--output_dir", output_dir, "--logger", "none", "--logging_steps", 1)
    train(*common, "--max_train_steps", 4, "--checkpointing_steps", 2)
    shutil.rmtree(output_dir / "checkpoint-4")
    folder = shutil.copytree(image_folder, tmp_path / "others")
    (folder / "0" / "0.png").unlink()
    changed = ("--train_data_dir", folder, "--random_flip", "--learning_rate", 1e-4, "--lr_scheduler", "linear")
    changed += ("--max_train_steps", 6, "--lr_warmup_steps", 0)
    train(*common, "--resume_from_checkpoint", "checkpoint-2", *changed)
    rates = [line["lr"] for line in lines(output_dir)]
    expected = [5e-4, 1e-3, *(1e-4 * (6 - step) / 6 for step in range(3, 7))]
    assert np.abs(np.array(rates) - expected).max() < 1e-9
    for change in (
        f"`train_data_dir` '{image_folder}' -> '{folder}'",
        "`random_flip` False -> True",
        "`learning_rate` 0.001 -> 0.0001",
        "`num_images` 16 -> 15",
        "`lr_warmup_steps` 2 -> 0",
    ):
        assert f"Changed since step 2: {change}" in caplog.text
    assert "`output_dir`" not in caplog.text
    (record,) = lines(output_dir, "changes")
    assert record["step"] == 2
    assert record["changed"]["learning_rate"] == [1e-3, 1e-4]
    with pytest.raises(ValueError, match=r"no folder named checkpoint-N: .*In .*model there are \['checkpoint-2', "):
        train(*common, "--resume_from_checkpoint", "checkpoint-3")


@pytest.mark.parametrize("options", [(), ("--resume_from_checkpoint", "latest"), ("--overwrite_output_dir",)])
def test_folder_that_another_run_wrote_to_while_this_one_read_its_images(image_folder, tmp_path, monkeypatch, options):
    output_dir, load = tmp_path / "model", train_unconditional.load_datasets
    common = ("--train_data_dir", image_folder, "--output_dir", output_dir, "--logger", "none")
    if options:
        train(*common, "--max_train_steps", 2, "--checkpointing_steps", 1)

    def load_while_another_runs(*args):
        monkeypatch.setattr(train_unconditional, "load_datasets", load)
        train(*common, "--max_train_steps", 5, "--checkpointing_steps", 1, "--resume_from_checkpoint", "latest")
        return load(*args)

    monkeypatch.setattr(train_unconditional, "load_datasets", load_while_another_runs)
    with pytest.raises(ValueError, match=r"`output_dir` .*model was written to by another run while this one read"):
        train(*common, "--max_train_steps", 9, "--checkpointing_steps", 1, *options)
    assert sorted(path.name for path in output_dir.glob("checkpoint-*")) == [f"checkpoint-{n}" for n in range(1, 6)]
    assert [line["step"] for line in lines(output_dir)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"])
def test_same_schedule_goes_on_to_the_bit(name):
    """What `follow_schedule` sets is what the checkpoint had; with another peak it is in proportion."""
    from diffusers.optimization import get_scheduler

    def start(rate, steps):
        optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=rate)
        schedule = get_scheduler(name, optimizer, num_warmup_steps=3, num_training_steps=11)
        for _ in range(steps):
            optimizer.step()
            schedule.step()
        return optimizer, schedule

    for steps in (0, 2, 7):
        optimizer, schedule = start(0.3, steps)
        states = optimizer.state_dict(), schedule.state_dict()
        for rate in (0.3, 0.7):
            resumed, resumed_schedule = start(rate, 0)
            resumed.load_state_dict(states[0])
            resumed_schedule.load_state_dict(states[1])
            training.follow_schedule(resumed_schedule, rate)
            expected = start(rate, steps)[0].param_groups[0]
            assert resumed.param_groups[0]["lr"] == expected["lr"] == resumed_schedule.get_last_lr()[0]
            assert resumed.param_groups[0]["initial_lr"] == rate


@pytest.mark.parametrize("launcher", [[], ["accelerate", "launch", "--num_processes", "2"]])
def test_command_to_continue_has_its_launcher(monkeypatch, launcher):
    """What stands before the script's own arguments, in this process or in the one that started it."""
    arguments = ["--output_dir", "a b", "--hub_token", "secret", "--overwrite_output_dir"]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-u", "train.py", *arguments])
    process = SimpleNamespace(parent=lambda: SimpleNamespace(cmdline=lambda: [*launcher, "train.py", *arguments]))
    if not launcher:
        process = SimpleNamespace(parent=lambda: None)
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    expected = [*launcher, "train.py"] if launcher else ["python3", "-u", "train.py"]
    expected += ["--output_dir", "a b", "--resume_from_checkpoint", "latest"]
    assert shlex.split(options.resume_command()) == expected


# -------------------------------------------------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(("given", "steps"), [(2, 2), (0.25, 2), (0, 0), (0.01, 0), (500, 500)])
def test_warm_up_is_a_number_of_steps_or_a_share(given, steps):
    args = training.parse_args(["--train_data_dir", ".", "--lr_warmup_steps", str(given)])
    assert training.warmup_steps(args.lr_warmup_steps, 8) == steps
    share = training.parse_args(["--train_data_dir", "."]).lr_warmup_steps
    assert 0 < training.warmup_steps(share, 100) < 50
    assert training.warmup_steps(share, 1000) == 10 * training.warmup_steps(share, 100)


# --------------------------------------------------------------------------------------------------------------- Ctrl-C


def test_ctrl_c_is_answered_while_a_call_of_torch_runs(monkeypatch):
    """The main thread waits in C, where no handler of Python's runs, for the line to be printed."""
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
    printed, failed = [], threading.Event()

    def write(line, file):
        printed.append(line)
        libc.pthread_mutex_unlock(mutex)

    def give_up():
        failed.set()
        libc.pthread_mutex_unlock(mutex)

    monkeypatch.setattr(signals.tqdm, "write", write)
    timer, interrupt = threading.Timer(20, give_up), threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with training.noted_signals() as received:
        libc.pthread_mutex_lock(mutex)
        timer.start()
        interrupt.start()
        libc.pthread_mutex_lock(mutex)  # until the line has come
    timer.cancel()
    assert not failed.is_set()
    assert received == [signal.SIGINT]
    assert printed == ["The run stops after this step, with a checkpoint. Once more: at once, without one."]


@pytest.mark.parametrize("seconds", [0, 1000])
def test_second_signal_stops_at_once_unless_it_is_the_same(monkeypatch, seconds):
    """torchrun hands on the Ctrl-C that its processes have got already."""
    codes, printed, answered = [], [], threading.Semaphore(0)

    def write(line, file):
        printed.append(line)
        answered.release()

    monkeypatch.setattr(signals, "SAME_SIGNAL_SECONDS", seconds)
    monkeypatch.setattr(signals.tqdm, "write", write)
    monkeypatch.setattr(signals.os, "_exit", codes.append)
    with training.noted_signals() as received:
        signal.raise_signal(signal.SIGTERM)
        assert answered.acquire(timeout=20)
        signal.raise_signal(signal.SIGTERM)
        is_stopped = answered.acquire(timeout=20 if seconds == 0 else 0.2)
        assert len(received) == 2
    assert is_stopped == (seconds == 0)
    assert codes == [128 + signal.SIGTERM] * is_stopped
    assert printed[1:] == ["Stopped at once."] * is_stopped


# ------------------------------------------------------------------------------------------------------------- trackers


@pytest.mark.parametrize("broken", ["__init__", "store_init_configuration", "log", "log_images", "finish"])
def test_tracker_that_fails_ends_no_training(tmp_path, monkeypatch, caplog, broken):
    """At whatever it fails; it is told once, and not asked again."""
    (tmp_path / "logs").mkdir()
    asked = []

    def fail(*_, **__):
        asked.append(broken)
        raise RuntimeError("the server is away")

    monkeypatch.setattr(tracking.TensorBoardTracker, broken, fail)
    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    training.start_trackers(accelerator, tmp_path, {"seed": 0}, 0)
    for step in (1, 2):
        training.log_values(accelerator, {"loss": 1.0}, step)
        training.save_preview(accelerator, tmp_path, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), step)
    training.end_training(accelerator)
    assert asked == [broken]
    assert caplog.text.count("the server is away") == 1
    assert (tmp_path / "sample.png").is_file()


def test_run_goes_on_without_its_tracker(image_folder, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the server is away")

    monkeypatch.setattr(Accelerator, "log", fail)
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logging_steps", 1)
    train(*common, "--max_train_steps", 3)
    assert caplog.text.count("the server is away") == 3  # it is accelerate's own method that fails here
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    assert (tmp_path / "sample.png").is_file()


class Tracker:
    """Takes a preview as one of accelerate's trackers does, which differ."""

    def __init__(self, name):
        self.name, self.pictures = name, []

    def log_images(self, values, step):
        (value,) = values.values()
        if self.name == "tensorboard":
            assert value.shape == (4, 1, 8, 8)
            self.pictures += [*value]
        elif self.name in ("aim", "clearml"):
            assert isinstance(value, Image.Image)
            self.pictures.append(value)
        else:
            assert all(isinstance(picture, Image.Image) for picture in value)
            self.pictures += value


@pytest.mark.parametrize("name", ["aim", "clearml", "wandb", "swanlab", "tensorboard"])
def test_preview_is_what_the_tracker_takes(tmp_path, name):
    """As accelerate's classes document it, those of the version that is installed."""
    if name not in tracking.LOGGER_TYPE_TO_CLASS:
        pytest.skip(f"accelerate has no {name}")
    assert hasattr(tracking.LOGGER_TYPE_TO_CLASS[name], "log_images")
    tracker = Tracker(name)
    accelerator = SimpleNamespace(trackers=[tracker], log_with=[name])
    training.save_preview(accelerator, tmp_path, torch.zeros(4, 1, 8, 8, dtype=torch.uint8), 3)
    assert accelerator.trackers == [tracker]
    assert len(tracker.pictures) == (4 if name == "tensorboard" else 1)


def test_resumed_run_goes_on_in_its_record(tmp_path, monkeypatch):
    """On wandb by an id, which a run of another folder does not share; and what trackers write is in the folder."""
    seen = []
    monkeypatch.setattr(Accelerator, "init_trackers", lambda self, name, config, init_kwargs: seen.append(init_kwargs))
    for folder in ("a", "a", "b"):
        (tmp_path / folder / "logs").mkdir(parents=True, exist_ok=True)
        trackers.start_trackers(Accelerator(cpu=True), tmp_path / folder, {}, 7)
    first, again, other = (arguments["wandb"] for arguments in seen)
    assert first == again != other
    assert first["resume"] == "allow"
    assert first["id"] != other["id"]
    assert seen[0]["tensorboard"] == {"purge_step": 8}
    folders = [seen[0]["wandb"]["dir"], seen[0]["dvclive"]["dir"], seen[0]["swanlab"]["logdir"]]
    assert all(Path(folder).is_relative_to(tmp_path / "a" / "logs") for folder in folders)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("tensorboard", r'"ddim-scheduler\[train\]"')])
def test_missing_tracker_says_what_to_install(image_folder, tmp_path, monkeypatch, name, package):
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(ValueError, match=f"`logger` is '{name}', .*: pip install {package}"):
        train("--train_data_dir", image_folder, "--output_dir", tmp_path / "model", "--logger", name)
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------------------------------------------------ attention


@pytest.mark.parametrize(
    ("resolution", "levels", "heights"),
    [
        ([64, 64], 4, [16]),
        ([32, 32], 3, [16]),
        ([48, 64], 4, [12]),
        ([96, 96], 4, [12]),
        ([80, 80], 4, [20]),
        ([100, 100], 3, []),  # 25 is slow, and there is no 12.5
        ([256, 256], 4, []),
        ([8, 8], 2, []),
    ],
)
def test_attention_is_at_the_height_nearest_to_16(resolution, levels, heights):
    args = ["--train_data_dir", ".", "--resolution", *map(str, resolution), "--block_out_channels", *["8"] * levels]
    assert training.parse_args(args).attention_resolutions == heights
    options = {"block_out_channels": [8] * levels, "layers_per_block": 1}
    unet = training.build_unet(resolution, 1, **options)
    blocks = [resolution[0] // 2**i for i, block in enumerate(unet.down_blocks) if hasattr(block, "attentions")]
    assert blocks == heights
    wrong = [*heights, 15]
    with pytest.raises(ValueError, match=rf"`attention_resolutions` must be of \[{resolution[0]}, .* but is .*15\]"):
        training.build_unet(resolution, 1, **options, attention_resolutions=wrong)


# ------------------------------------------------------------------------------------------------------ what a run says


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolutoin", "3"], "--resolutoin"),
        (["--resolution", "x"], "--resolution"),
        (["--train_batch_size", "0"], "--train_batch_size must be positive, but is 0"),
        (["--lr_warmup_steps", "2.5"], "--lr_warmup_steps: must be a whole number of steps, or a share below 1"),
        (["--lr_warmup_steps", "-0.5"], "--lr_warmup_steps must not be negative"),
        (
            ["--pretrained_model_name_or_path", "a", "--model_config_name_or_path", "b"],
            "either --pretrained_model_name_or_path or --model_config_name_or_path",
        ),
    ],
)
def test_wrong_argument_is_one_line(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        training.parse_args(["--train_data_dir", ".", *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_help_begins_with_what_the_first_day_needs(capsys):
    with pytest.raises(SystemExit):
        training.parse_args(["--help"])
    printed = capsys.readouterr().out
    assert len(printed.partition("\n\n")[0].splitlines()) <= 2  # the usage
    first, rest = printed.split("more about the data:")
    needed = (
        "train_data_dir",
        "output_dir",
        "resolution",
        "max_train_steps",
        "learning_rate",
        "resume_from_checkpoint",
    )
    assert all(f"--{name} " in first and f"\n  --{name} " not in rest for name in needed)
    assert all(f"\n  --{name} " in rest for name in ("adam_beta1", "ema_power", "image_column", "snr_gamma"))


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress_is_lines_where_the_output_is_no_terminal(image_folder, tmp_path, monkeypatch, caplog, is_terminal):
    """The first loss is there after the first step."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logger", "none")
    train(*common, "--max_train_steps", 12)
    assert [line["step"] for line in lines(tmp_path)] == [1, 10, 12]
    messages = [record.getMessage().removeprefix("[RANK 0] ") for record in caplog.records]
    shown = [message for message in messages if message.startswith("step ")]
    expected = [] if is_terminal else ["step 1 of 12: loss", "step 10 of 12: loss", "step 12 of 12: loss"]
    assert [line[: len(start)] for line, start in zip(shown, expected, strict=True)] == expected
    assert ("Sampling 4 images ..." in caplog.text) == (not is_terminal)


def test_accumulation_over_more_than_an_epoch_is_not_claimed(caplog):
    assert training.count_batches(17, 4, 4) == (4, 4)
    assert not caplog.text
    assert training.count_batches(17, 4, 100) == (4, 4)
    assert "`gradient_accumulation_steps` is 100, but an epoch has 4 batches: a step sees 16 images" in caplog.text


def test_workers_live_on_through_the_epochs(image_folder):
    """And give what the process itself would, after a resume as well."""
    batches = []
    for num_workers in (0, 2):
        dataset = training.ImageDataset(
            *training.find_folder_images(image_folder), resolution=[16, 16], random_flip=True, image_cache_gb=0
        )
        loader = training.make_dataloader(dataset, 5, num_workers, torch.device("cpu"))
        loader = Accelerator(cpu=True).prepare(loader)
        given = training.seeded_batches(loader, 0, 1, 3, 1)
        batches.append([next(given)[1][0] for _ in range(9)])
        if num_workers:
            pids = [worker.pid for worker in loader._iterator._workers]
            for _ in range(3):
                next(given)
            assert [worker.pid for worker in loader._iterator._workers] == pids
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


# ------------------------------------------------------------------------------------------------ weights to start from


@pytest.fixture(scope="module")
def pretrained(unet, tmp_path_factory):
    """A pipeline of 16x16 gray images with two classes and one label for none, and its UNet."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    unet = UNet2DModel.from_config(unet.config, **blocks, num_class_embeds=3).eval()
    folder = tmp_path_factory.mktemp("pretrained")
    scheduler = EtaDDIMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2")
    EtaDDIMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder, unet, scheduler


@pytest.mark.parametrize(("num_classes", "subfolder"), [(2, ""), (5, "unet"), (None, "")])
@torch.no_grad()
def test_other_classes_begin_as_no_class(pretrained, num_classes, subfolder):
    """With as many classes the network is the same; each of others computes what the pretrained one does for none."""
    folder, unet, scheduler = pretrained
    path = folder / subfolder
    ours = training.pretrained_unet(path, [8, 24], 1, num_classes, noise_scheduler=scheduler)
    assert ours.training
    assert tuple(ours.config.sample_size) == (8, 24)
    assert ours.config.num_class_embeds == (None if num_classes is None else num_classes + 1)
    reloaded = UNet2DModel.from_config(ours.config)
    reloaded.load_state_dict(ours.state_dict())
    x, t = torch.randn(6, 1, 8, 24), torch.arange(6) * 150
    labels = None if num_classes is None else torch.arange(6) % (num_classes + 1)
    theirs = labels if num_classes == 2 else torch.full((6,), 2)
    assert (reloaded.eval()(x, t, labels).sample - unet(x, t, theirs).sample).abs().max() < 1e-5


@torch.no_grad()
def test_classes_of_a_network_without_begin_as_it(small_unet, tmp_path, caplog):
    unet = small_unet(in_channels=1, out_channels=1).eval()
    unet.half().save_pretrained(tmp_path)
    ours = training.pretrained_unet(tmp_path, [8, 8], 1, 3, noise_scheduler=EtaDDIMScheduler())
    assert "is a network without a scheduler: nothing shows whether it predicts 'epsilon'" in caplog.text
    assert ours.dtype == torch.float32
    x, t = torch.randn(4, 1, 8, 8), torch.arange(4) * 200
    difference = ours.eval()(x, t, torch.arange(4)).sample - unet.float()(x, t).sample
    assert difference.abs().max() < 1e-5


def test_fine_tuning_begins_with_the_weights(pretrained, image_folder, tmp_path, caplog):
    folder, unet, _ = pretrained
    common = ("--train_data_dir", image_folder, "--output_dir", tmp_path, "--logger", "none", "--class_conditional")
    common += ("--pretrained_model_name_or_path", folder, "--prediction_type", "v_prediction")
    common += ("--ddpm_beta_schedule", "squaredcos_cap_v2", "--max_train_steps", 1, "--learning_rate", 1e-9)
    train(*common)
    tuned = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert all((tuned[name] - value).abs().max() < 1e-7 for name, value in unet.state_dict().items())
    assert "without a scheduler" not in caplog.text
    with pytest.raises(ValueError, match="`overwrite_output_dir` would delete `pretrained_model_name_or_path`"):
        train(*common, "--pretrained_model_name_or_path", tmp_path / "unet", "--overwrite_output_dir")


@pytest.mark.parametrize(
    ("resolution", "channels", "scheduler", "message"),
    [
        ([16, 16], 3, {}, "takes 1 channels, but the images have 3"),
        ([16, 17], 1, {}, r"`resolution` must be a multiple of 2 .* but is \[16, 17\]"),
        ([16, 16], 1, {"prediction_type": "epsilon"}, "`prediction_type` is 'epsilon', but 'v_prediction' there"),
        ([16, 16], 1, {"beta_schedule": "linear"}, "`ddpm_beta_schedule` is 'linear', but 'squaredcos_cap_v2' there"),
        ([16, 16], 1, {"num_train_timesteps": 500}, "`ddpm_num_steps` is 500, but 1000 there"),
    ],
)
def test_weights_that_do_not_fit_are_refused(pretrained, resolution, channels, scheduler, message):
    folder, _, own = pretrained
    noise_scheduler = EtaDDIMScheduler.from_config(own.config, **scheduler)
    with pytest.raises(ValueError, match=message):
        training.pretrained_unet(folder, resolution, channels, noise_scheduler=noise_scheduler)


def test_weights_of_other_betas_or_of_no_model_are_refused(pretrained, small_unet, tmp_path):
    _, _, scheduler = pretrained
    with pytest.raises(ValueError, match=r"`pretrained_model_name_or_path` '.*nothing' cannot be loaded"):
        training.pretrained_unet(tmp_path / "nothing", [8, 8], 1, noise_scheduler=scheduler)
    unet = small_unet(in_channels=1, out_channels=1)
    EtaDDIMPipeline(unet=unet, scheduler=EtaDDIMScheduler(beta_end=0.012)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"with betas that no option gives: .*'beta_end': 0\.012"):
        training.pretrained_unet(tmp_path, [8, 8], 1, noise_scheduler=EtaDDIMScheduler())
