# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""What the commands of this package and the examples share: one line for an error, and packages of the extras."""

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in a line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists all options)\n")


def run(main: Callable[[], Any]):
    """Runs the `main` of a command, and ends without a traceback: `error: ...` if its input is at fault, or Ctrl-C."""
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ImportError, NotImplementedError, OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


def add_device(parser: argparse.ArgumentParser, help: str, default: str | None = None):
    """Adds `--device`, the GPU by default if there is one; what torch cannot compute on here is refused."""
    default = default or ("cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--device", type=_device, default=default, help=help)


def _device(name: str) -> str:
    try:
        torch.zeros(1, device=name).item()
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"torch cannot compute on {name!r} here: {error}".splitlines()[0]) from None
    return name


def import_extra(name: str, extra: str) -> Any:
    """
    Imports a module of an optional package.

    Args:
        name: Full name of the module, as in `import`.
        extra: The extra of this package that installs it, `"train"` or `"eval"`.

    Raises:
        ImportError: If it cannot be imported; the message says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f'needs {package}: pip install "ddim-scheduler[{extra}]" ({error})') from error


def launched_as() -> list[str]:
    """What Python was told to run in this process: a file, or `-m` and a module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:
        return ["-m", spec.name.removesuffix(".__main__")]
    return sys.argv[:1]


def started_by() -> list[str]:
    """
    What a shell was given to start this process, up to the arguments of the script: `accelerate launch`, `torchrun` or
    another launcher with its options if it was given the same arguments, else Python.
    """
    arguments = sys.argv[1:]
    commands = [sys.orig_argv]
    try:
        launcher = import_extra("psutil", "train").Process().parent()
        commands.insert(0, [] if launcher is None else launcher.cmdline())
    except Exception:  # no psutil, or a process of another user
        pass
    for command in commands:
        if arguments and command[-len(arguments) :] == arguments:
            return command[: -len(arguments)]
    return ["python", *launched_as()]
