"""The notebooks run from top to bottom in a kernel of their own, on small settings."""

import base64
import io
import re
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"


class Small(NamedTuple):
    """A notebook made small.

    Attributes:
      settings: Written below the notebook's own settings, the cell with the tag "parameters".
      checks: Run after its last cell, on its variables.
      figures: Pictures that it shows.
    """

    settings: str
    checks: str
    figures: int


NOTEBOOKS = {
    "ccl_in_ten_minutes": Small(
        """
AGENTS, ALPHA, EPOCHS, EPOCHS_ALONE = 4, 1.0, 3, 1
METHODS = {name: METHODS[name] for name in ["CCL + QG-DSGDm-N"]}
""",
        """
np.testing.assert_allclose((l_mv[0], l_dv[0]), by_hand, rtol=1e-5)
# A model of 10,250 parameters, class sums of 10 x 64 numbers, 10 counts.
assert sizes == [41_000, 2_560, 40]
last = curves["CCL + QG-DSGDm-N"][-1]
assert last["local_accuracy_mean"] > 0.2 and np.isfinite(last["model_variant_loss"])
assert last["bytes_sent_per_agent"] == last["step"] * 2 * 43_600
assert len(taken_for) - len(wrong) == round(360 * summary["consensus_accuracy"])
assert confusion.sum(axis=1).tolist() == np.bincount(digits.test_labels).tolist()
assert confusion.trace() == len(taken_for) - len(wrong)
assert all(found[0].probability >= mistake.probability for mistake in found) and len(found) == 8
""",
        7,
    ),
    "cifar10_tpu": Small(
        """
MODEL, AGENTS, ALPHA, BATCH_SIZE, LR, EPOCHS, VERIFY = "lenet5", 4, 10.0, 10, 0.01, 1, False
METHODS = {"ccl": METHODS["ccl"]}
""",
        """
assert dict(plan.mesh.shape) == {"agents": 4, "batch": 1} and schedule.rows_moved == 2
shards = kernel.addressable_shards
assert [shard.index[0] for shard in shards] == [slice(k, k + 1, None) for k in range(4)]
assert len({shard.device for shard in shards}) == 4
(summary,) = summaries
assert (summary["label"], summary["steps"]) == ("CCL + qg-dsgdm-n", 5)
assert np.isfinite(summary["model_variant_loss"]) and 0 <= summary["consensus_accuracy"] <= 1
assert runner.execute(runner.prepare(config.replace(resume=True), cifar)) == summary
""",
        4,
    ),
    "your_own_algorithm": Small(
        """
AGENTS, ALPHA, EPOCHS, RUNS = 4, 1.0, 1, RUNS[-1:]
""",
        """
assert one_agent_error < 1e-5 and mean_error < 1e-6
assert max(rest_error.values()) < 1e-3
# Not for want of a difference: the fixed points are far apart.
assert np.abs(limits["dsgdm"] - limits["mixed-momentum"]).max() > 0.01
assert sent.tolist() == [2 * 2 * 4 * SIZE] * N
(summary,) = summaries
assert summary["label"] == "CCL + mixed-momentum" and np.isfinite(summary["cross_entropy"])
# Models of 10,250 parameters and as much momentum, class sums and counts, to two neighbours.
assert summary["bytes_sent_per_agent"] == summary["steps"] * 2 * (2 * 41_000 + 2_600)
""",
        2,
    ),
}


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder with a small archive in CIFAR-10's own format: 5 x 40 training images, 20 others."""
    folder = tmp_path_factory.mktemp("notebook") / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, count in [(f"data_batch_{k}", 40) for k in range(1, 6)] + [("test_batch", 20)]:
            records = [struct.pack("B", k % 10) + rng.bytes(3072) for k in range(count)]
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = count * 3073
            tar.addfile(info, io.BytesIO(b"".join(records)))
    return folder.parent


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def settings_of(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell with the tag "parameters"."""
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return cell


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs_from_top_to_bottom(name, cifar, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND")  # pictures go into the notebook, as a reader has it
    small, notebook = NOTEBOOKS[name], read(name)
    settings_of(notebook).source += small.settings
    notebook.cells.append(nbformat.v4.new_code_cell(small.checks))
    where = cifar if name == "cifar10_tpu" else tmp_path
    resources = {"metadata": {"path": str(where)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == small.figures


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_is_kept_without_outputs(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opens_with_a_picture_that_it_holds_and_ends_with_exercises(name):
    """Colab shows neither attachments nor files of the repository."""
    first, *_, last = read(name).cells
    (encoded,) = re.findall(r"^!\[.+\]\(data:image/png;base64,(.+)\)$", first.source, re.MULTILINE)
    width, height = Image.open(io.BytesIO(base64.b64decode(encoded))).size
    assert 300 <= width <= 1000 and 300 <= height <= 1000
    tasks = last.source.split("## Exercises")[1]
    assert tasks.count("*Hint:*") >= 1 and tasks.count("*You should see:*") >= 2


def test_all_notebooks_are_run_and_come_from_one_place():
    assert sorted(NOTEBOOKS) == sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    sources = [
        re.findall(r"^SOURCE = (.*)$", cell.source, re.MULTILINE)
        for name in NOTEBOOKS
        for cell in read(name).cells
    ]
    assert len([found for found in sources if found]) == 3
    assert len({found[0] for found in sources if found}) == 1
