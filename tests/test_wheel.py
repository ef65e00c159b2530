"""The wheel, in an empty folder, without the checkout: what it holds, and that the mains run from it."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ccl_jax
from experiments.study import catalogue

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "requirements.txt", "README.md", "LICENSE")
STUDY = """
title = "A small study"
question = "Does it run?"
seeds = [0]
[settings]
agents = 2
topology = "ring"
epochs = 1
batch_size = 256
devices = 1
[methods]
"plain" = {}
[data.digits]
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that a wheel was unpacked into, which is what installing it does."""
    source, wheels, target = (tmp_path_factory.mktemp(n) for n in ("source", "wheels", "target"))
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    unwanted = shutil.ignore_patterns("__pycache__")
    for name in ("ccl_jax", "experiments", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, wheels], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    return target


@pytest.fixture(scope="module")
def run(installed, tmp_path_factory):
    """Runs Python from the wheel, in a folder that was empty at first."""
    folder = tmp_path_factory.mktemp("empty")

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
        )
        return done.returncode, done.stdout, done.stderr

    run.folder, run.before = folder, set(installed.rglob("*"))
    return run


def test_holds_the_packages_and_their_data_and_nothing_else(installed):
    assert sorted(path.name for path in installed.iterdir()) == [
        "ccl_jax",
        f"ccl_jax-{ccl_jax.__version__}.dist-info",
        "experiments",
    ]
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    plans = [f"study/plans/{name}.toml" for name in catalogue.names()]
    assert {f"experiments/{name}" for name in ("settings.toml", *plans)} <= files
    modules = {
        str(path.relative_to(ROOT))
        for package in ("ccl_jax", "experiments")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name for name in files if name.endswith(".py")} == modules
    assert not any(name.startswith("experiments/results") for name in files)


def test_says_what_it_is(installed):
    (found,) = importlib.metadata.distributions(name="ccl_jax", path=[str(installed)])
    said = found.metadata
    assert said["Version"] == ccl_jax.__version__
    assert f"\nversion: {ccl_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{ccl_jax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    wanted = (ROOT / "requirements.txt").read_text().splitlines()
    count = sum(not line.startswith("#") for line in wanted)
    assert sum("extra ==" not in each for each in said.get_all("Requires-Dist")) == count


def test_the_wheel_is_what_runs(run, installed):
    code = "import ccl_jax, experiments; print(ccl_jax.__file__, experiments.__file__)"
    _, out, err = run("-c", code)
    assert [Path(name).parents[1] for name in out.split()] == [installed, installed], err


def test_lists(run):
    code, out, err = run("-m", "experiments.study", "--list")
    assert code == 0 and out.count("\n") == len(catalogue.names()), err
    code, out, err = run("-m", "experiments.study", "--study=first_three", "--list")
    assert code == 0 and out.count("missing") == 20, err
    code, out, err = run("-m", "experiments.methods")
    assert code == 0 and "qg-dsgdm-n" in out, err
    code, out, err = run("-m", "experiments.topologies", "--agents=4", "--topology=ring")
    assert code == 0 and (run.folder / "topologies.png").is_file(), err


def test_digits(run):
    flags = ["--epochs=2", "--agents=2", "--batch_size=256", "--devices=1"]
    code, out, err = run("-m", "experiments.digits", *flags)
    assert code == 0 and "CCL + qg-dsgdm-n" in out, err
    (workdir,) = (run.folder / "runs").iterdir()
    assert f"run directory: {workdir.relative_to(run.folder)}" in out
    assert (workdir / "comparison.json").is_file()


def test_a_study_of_ones_own(run):
    (run.folder / "mine.toml").write_text(STUDY)
    code, _, err = run("-m", "experiments.study", "--study=mine.toml")
    assert code == 0, err
    code, out, err = run("-m", "experiments.report", "--study=mine.toml")
    assert code == 0 and out.strip() == "results/mine-digits", err
    assert (run.folder / out.strip() / "report.html").is_file()


def test_presets_come_along(run):
    code, out, err = run("-m", "experiments.presets")
    assert code == 0 and out.split()[0] == "cifar10/ring16/0.1", err


def test_all_is_written_into_the_present_folder(run, installed):
    """The tests above leave nothing in the package but what Python compiles."""
    new = {path for path in installed.rglob("*") if path.name != "__pycache__"} - run.before
    assert {path.suffix for path in new} <= {".pyc"}
    found = {path.name for path in run.folder.iterdir()}
    assert found <= {"mine.toml", "results", "runs", "topologies.png"}
