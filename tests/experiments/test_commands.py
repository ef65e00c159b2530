"""`python -m experiments`: all commands, and what each is for."""

import re
from pathlib import Path

from experiments import __main__ as listed

ROOT = Path(__file__).parents[2]


def test_every_command_of_the_documentation_is_listed(capsys):
    texts = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        name for file in texts for name in re.findall(r"-m experiments\.(\w+)", file.read_text())
    }
    assert {"digits", "cifar10", "predict", "study", "report", "parity", "benchmark"} <= named
    assert listed.main() == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[2:]]
    assert named <= {name for name, _ in rows}
    assert dict(rows) == listed.commands() and all(text.endswith(".") for _, text in rows)


def test_what_is_listed_can_be_run():
    for name in listed.commands():
        module = ROOT / "experiments" / name / "__main__.py"
        file = module if module.exists() else ROOT / "experiments" / f"{name}.py"
        assert '\nif __name__ == "__main__":\n    sys.exit(' in file.read_text()
