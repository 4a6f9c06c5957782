# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The code that travels with a model, for those who load it where the package is not installed.

diffusers copies the entry file of a model's folder, and the files which that names, into one flat folder for all
models; it executes the entry again for each model, and everything else once. So the entry here holds nothing but the
names of the other files, and these are named by their content: two versions of this package never meet.
"""

import hashlib
import re
import sys
from importlib.util import resolve_name
from pathlib import Path

# A file's module, and its name as it travels. diffusers looks for such lines by patterns like the first one, in strings
# as well, so that no text of a travelling file may have a line that begins like an import.
IMPORT = re.compile(r"^from (\.+[\w.]+) import ", flags=re.MULTILINE)
NAME = re.compile(r"^(?:ddim_)?(\w+?)(?:_[0-9a-f]{8})?$")
NAMES = f"ddim_*_{'[0-9a-f]' * 8}.py"  # as a pattern for glob and fnmatch

ENTRY = '''# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""The code that this model was saved with, by ddim-scheduler: diffusers runs this file and copies those it names."""

import importlib
import sys
import types
from pathlib import Path

importlib.invalidate_caches()
try:
    importlib.import_module(__package__)
except ModuleNotFoundError:  # the repository's name has a dot in it, which python takes for a package in a package
    sys.modules[__package__] = types.ModuleType(__package__)
    sys.modules[__package__].__path__ = [str(Path(__file__).parent)]

'''


def travelling_code(module: str, entry: str) -> dict[str, bytes]:
    """
    The files that a model's folder needs so that diffusers finds the classes of a module there.

    They are read now, so that what is saved is what runs: call it when the module is imported. A module that has
    travelled gives the files that it was loaded from.

    Args:
        module (`str`): The module's `__name__`. It imports others of its package by `from .name import`, at the top.
        entry (`str`): Name of the file that diffusers asks for.

    Returns:
        `dict[str, bytes]`: file names and contents; the entry is the last one.
    """
    names: dict[str, str] = {}  # of modules, those that others import first
    files: dict[str, bytes] = {}

    def add(module: str):
        package = module.rpartition(".")[0]
        text = Path(str(sys.modules[module].__file__)).read_text(encoding="utf-8")
        needed = {relative: resolve_name(relative, package) for relative in IMPORT.findall(text)}
        for name in needed.values():
            if name not in names:
                add(name)
        content = IMPORT.sub(lambda line: f"from .{names[needed[line[1]]]} import ", text).encode()
        stem = NAME.sub(r"ddim_\1", module.rpartition(".")[2])
        names[module] = f"{stem}_{hashlib.sha256(content).hexdigest()[:8]}"
        files[f"{names[module]}.py"] = content

    add(module)
    *others, last = names.values()
    lines = [*(f"from .{name} import __name__ as _\n" for name in others), f"from .{last} import *\n"]
    return {**files, entry: (ENTRY + "".join(lines)).encode()}
