"""Examples in the README and in docs/ run as they stand there, and print what is shown below them."""

import re
from pathlib import Path

import pytest

from ccl_jax import algorithms, graphs, losses, models
from experiments.study import catalogue

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))
EXAMPLES = ("after_training", "code", "extending", "losses", "method", "scaling", "studies")

# A block of Python and, if the next block is one of text, what it prints.
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?", re.DOTALL | re.MULTILINE)


@pytest.fixture
def registries():
    """What an example adds to a table is gone after it."""
    tables = (algorithms.REGISTRY, losses.REGISTRY, models.MODELS, graphs.GRAPHS)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)


def test_the_readmes_algorithm_runs(tmp_path, monkeypatch, capsys, registries):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "CCL + sign-sgdm" in capsys.readouterr().out


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_page_print_what_it_shows(
    name, tmp_path, monkeypatch, capsys, registries
):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "example"}
    for number, (code, shown) in enumerate(BLOCK.findall((ROOT / f"docs/{name}.md").read_text())):
        exec(compile(code, f"{name}.md, block {number}", "exec"), namespace)
        assert capsys.readouterr().out == shown


def test_the_loss_that_is_shown_is_the_one_there_is():
    """Line by line, but for the docstring and the check of ranks."""
    page = (ROOT / "docs/losses.md").read_text()
    shown = re.search(r"^    @base.register\($.*?^(?=\S)", page, re.DOTALL | re.MULTILINE)[0]
    lines = [line.removeprefix("    ") for line in shown.rstrip().splitlines()]
    source = (ROOT / "ccl_jax/losses/prototype.py").read_text().splitlines()
    source = source[source.index("@base.register(") :]
    left_out = [line for line in source if line not in lines]
    assert len(left_out) == 2 and [line for line in source if line in lines] == lines


def test_all_examples_are_run():
    with_blocks = [page.stem for page in PAGES if "```python" in page.read_text()]
    assert with_blocks == list(EXAMPLES)
    for page in PAGES:
        text = page.read_text()
        assert len(BLOCK.findall(text)) == text.count("```python")


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("*.md")), *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in headings(there), f"{page.name} links to {target}"


def headings(page: Path) -> list[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_numbers_of_the_readmes_tables_are_those_of_the_reports():
    reports = sorted((ROOT / "experiments/results").glob("*/results.md"))
    rows = [re.split(r" *\| *", line) for file in reports for line in file.read_text().splitlines()]
    shown = re.search(r"## What is seen\n(.*?)\n## ", README.read_text(), re.DOTALL)[1]
    number = re.compile(r"[\d.]+ ± [\d.]+|[+−][\d.]+ \[[+−][\d.]+, [+−][\d.]+\]")
    found = number.findall(shown)
    assert len(found) > 40
    known = {cell for row in rows for cell in row}
    assert [text for text in found if text not in known] == []


def test_every_study_has_its_question():
    text = (ROOT / "docs/studies.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == set(catalogue.names())
