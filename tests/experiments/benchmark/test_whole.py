"""Whole runs, measured: parts of the time, the noise that stands for CIFAR-10, what cannot be run."""

import json

import numpy as np
import pytest

from ccl_jax.data import datasets
from experiments.benchmark import command, whole
from experiments.benchmark.whole import LeftOut, Run

SMALL = (*whole.CCL, "--agents=2", "--devices=1", "--epochs=1", "--alpha=10", "--nofigures")


def test_parts_add_up_and_the_second_run_finds_programs(tmp_path):
    run = Run("digits", "experiments.digits", SMALL)
    programs = lambda: {file.name for file in (tmp_path / "new" / "programs").glob("*-cache")}
    measured = whole.twice(run, tmp_path / "new")
    first, cold = next(measured)
    kept = programs()
    second, warm = next(measured)
    assert (first, second) == ("empty", "filled")
    assert kept and programs() == kept  # The second run has compiled nothing that was not there.
    for fields in (cold, warm):
        parts = [fields[f"seconds_{name}"] for name in whole.PARTS]
        assert min(parts) > 0
        np.testing.assert_allclose(sum(parts), fields["seconds_total"])
        np.testing.assert_allclose(sum(parts[:3]), fields["seconds_first_step"])
        assert fields["cpu_seconds"] > 1 and fields["steps"] == 23  # 719 images, 32 a step.
        assert fields["made_with"]["command"] == ["python", "-m", "experiments.digits", *SMALL]
        assert str(tmp_path) not in json.dumps(fields)
        assert fields["run"] == "digits" and fields["agents"] == 2


def test_noise_is_read_as_cifar10(tmp_path):
    whole.write_cifar10(tmp_path / "cifar10", images=20)
    dataset = datasets.load("cifar10", tmp_path / "cifar10")
    assert dataset.train_images.shape == (100, 32, 32, 3)
    assert dataset.test_images.shape == (20, 32, 32, 3)
    assert np.bincount(dataset.train_labels).tolist() == [10] * 10
    assert dataset.train_images.std() > 50


def test_a_run_without_its_data_is_left_out(tmp_path, capsys, monkeypatch):
    run = Run("pictures", "experiments.cifar10", ("--data_dir=" + str(tmp_path),))
    with pytest.raises(LeftOut, match=r"CIFAR-10 needs cifar-10-binary\.tar\.gz"):
        whole.measure(run, tmp_path / "run", tmp_path / "programs")
    assert not (tmp_path / "run").exists()

    def lacks(*args):
        raise LeftOut("no files")

    monkeypatch.setattr(whole, "measure", lacks)
    output = tmp_path / "lines.jsonl"
    assert command.main(["benchmark", "--whole", f"--output={output}"]) == 0
    said = capsys.readouterr()
    assert said.err.splitlines()[0] == "left out: digits, digits-cnn, 60 epochs: no files"
    assert len(said.err.splitlines()) == 3 and output.read_text() == ""


def test_a_run_that_fails_is_an_error(tmp_path):
    run = Run("digits", "experiments.digits", (*SMALL, "--lr=1e30"))
    with pytest.raises(ChildProcessError, match="the loss is no longer finite at step"):
        whole.measure(run, tmp_path / "run", tmp_path / "programs")


@pytest.mark.parametrize("other", ["--model=lenet5", "--compile_for=tpu:v5e:2x2", "--scaling"])
def test_flags_that_it_would_not_obey_are_refused(other, tmp_path, capsys):
    output = tmp_path / "lines.jsonl"
    assert command.main(["benchmark", "--whole", other, f"--output={output}"]) == 2
    name = other.partition("=")[0]
    assert f"--whole takes no {name}; it goes with --data_dir and --output only" in (
        capsys.readouterr().err
    )
    assert not output.exists()
