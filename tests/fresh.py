"""Scripts that run in a fresh process, where nothing was imported or registered before."""

import json
import os
import subprocess
import sys
from pathlib import Path

# `import ddim_scheduler` fails as it does where the package is not installed; the names of copies of it are longer
WITHOUT_PACKAGE = """
import importlib.abc, sys

class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ddim_scheduler":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
"""

PRELUDE = """
import json, sys
from pathlib import Path
import diffusers, torch
from diffusers import DiffusionPipeline
diffusers.utils.logging.disable_progress_bar()

arguments = json.loads(sys.argv[1])
found = {}

def sample(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe(num_inference_steps=3, seed=1, output_type="pt").images.flatten().tolist()

def refusal(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"
"""


def run(script: str, home: Path, with_package: bool = True, env: dict[str, str] | None = None, **arguments) -> dict:
    """
    Runs a script and returns its dictionary `found`.

    Args:
        script: Python code after `PRELUDE`; it reads `arguments`.
        home: The folder for `HF_HOME`, which holds the cache and the copies of remote code.
        with_package: Whether `ddim_scheduler` can be imported.
        env: More environment variables.
        arguments: JSON-able.
    """
    code = ("" if with_package else WITHOUT_PACKAGE) + PRELUDE + script
    code += "\nPath(arguments['found']).write_text(json.dumps(found))"
    home.mkdir(exist_ok=True)
    arguments["found"] = str(home / "found.json")
    result = subprocess.run(
        [sys.executable, "-c", code, json.dumps(arguments, default=str)],
        env={**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **(env or {})},
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return {**json.loads(Path(arguments["found"]).read_text()), "stderr": result.stderr}
