"""
Scripts that run in a fresh process, where only diffusers was imported and nothing was registered before.

The import takes seconds, so that one process does it for each home and environment, and is forked for each script.
"""

import functools
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

SERVER = """
import json, os, signal, sys, traceback
from pathlib import Path
import diffusers, torch
from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DModel
diffusers.utils.logging.disable_progress_bar()
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

for request in map(json.loads, sys.stdin):
    if not (child := os.fork()):
        signal.alarm(300)
        printed = os.open(request["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(printed, 1)
        os.dup2(printed, 2)
        status, arguments = 1, request["arguments"]
        try:
            exec(request["code"])
            Path(request["found"]).write_text(json.dumps(found))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@functools.cache
def _server(home: Path, *env: tuple[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "HF_HOME": str(home), "OMP_NUM_THREADS": "1", **dict(env)},
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run(script: str, home: Path, with_package: bool = True, env: dict[str, str] | None = None, **arguments) -> dict:
    """
    Runs a script and returns its dictionary `found`.

    Args:
        script: Python code that reads `arguments` and has the names of `SERVER`.
        home: The folder for `HF_HOME`, which holds the cache and the copies of remote code.
        with_package: Whether `ddim_scheduler` can be imported.
        env: More environment variables.
        arguments: JSON-able.
    """
    home.mkdir(exist_ok=True)
    found, printed = home / "found.json", home / "printed.txt"
    request = {"code": ("" if with_package else WITHOUT_PACKAGE) + script, "arguments": arguments}
    request |= {"found": found, "printed": printed}
    server = _server(home, *sorted((env or {}).items()))
    print(json.dumps(request, default=str), file=server.stdin, flush=True)
    status = server.stdout.readline().strip()
    assert status == "0", printed.read_text() if printed.exists() else f"the process of the scripts ended: {status!r}"
    return {**json.loads(found.read_text()), "stderr": printed.read_text()}
