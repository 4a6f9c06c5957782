"""The Python snippets of the README are run as they stand, in order, in one process; test_hub runs the `hub` ones."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_readme_snippets_run(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("outputs/digits")
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert snippets
    namespace = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), namespace)
