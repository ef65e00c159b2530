"""The README's example of an algorithm runs as it stands there."""

import re
from pathlib import Path

from ccl_jax import algorithms

README = Path(__file__).parents[1] / "README.md"


def test_the_algorithm_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    try:
        exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    finally:
        algorithms.REGISTRY.pop("sign-sgdm", None)
    assert "CCL + sign-sgdm" in capsys.readouterr().out
