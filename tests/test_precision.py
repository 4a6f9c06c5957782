"""The precision that a run is trained in."""

import json

import pytest
import torch
from accelerate.state import PartialState

from ddim_scheduler.training import choose_precision, train_unconditional

from training import TINY, forget_accelerator, write_images


@pytest.fixture
def processor(monkeypatch):
    """Makes torch see a processor with or without instructions for bfloat16."""

    def see(has_bfloat16: bool):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return see


@pytest.mark.parametrize(
    ("asked", "has_bfloat16", "precision", "reason", "warns"),
    [
        (None, True, "bf16", "bfloat16, for which this processor has instructions", False),
        (None, False, "no", "float32, as this processor", False),
        ("no", True, "no", "float32, as asked for", False),
        ("bf16", True, "bf16", "bfloat16, as asked for", False),
        ("bf16", False, "bf16", "bfloat16, as asked for", True),
    ],
)
def test_precision_is_what_is_asked_for_or_what_the_processor_has(
    asked, has_bfloat16, precision, reason, warns, processor, caplog
):
    PartialState(cpu=True)  # of which accelerate's loggers ask the process
    processor(has_bfloat16)
    chosen, why = choose_precision(asked, torch.device("cpu"))
    assert chosen == precision
    assert why.startswith(reason)
    assert ("many times slower" in caplog.text) == warns


@pytest.mark.parametrize(
    ("of_launcher", "of_script", "has_bfloat16", "precision"),
    [("no", [], True, "bf16"), ("bf16", [], False, "bf16"), ("bf16", ["--mixed_precision", "no"], True, "no")],
)
def test_precision_of_a_run(of_launcher, of_script, has_bfloat16, precision, processor, monkeypatch, tmp_path):
    """`accelerate launch` hands on "no" where nobody asked for anything; the script's own option goes before it."""
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", 4)
    processor(has_bfloat16)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", of_launcher)
    options = [*TINY[: TINY.index("--mixed_precision")], *of_script, "--train_data_dir", str(tmp_path / "images")]
    forget_accelerator()
    train_unconditional.main([*options, "--output_dir", str(tmp_path / "run"), "--max_train_steps", "1"])
    assert json.loads((tmp_path / "run" / "training_args.json").read_text())["mixed_precision"] == precision
