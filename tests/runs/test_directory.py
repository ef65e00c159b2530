"""The run directory: what is written, and where a run cannot start."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.runs.directory import RunDirectory, plain


def test_a_run_directory_holds_config_rows_and_summary(tmp_path):
    run = RunDirectory(tmp_path / "deep" / "run")
    run.check_free()
    assert not (tmp_path / "deep").exists()  # Checking writes nothing.
    run.create({"lr": 0.1, "hparam": ()})
    run.log({"epoch": 1, "loss": np.float32(0.5), "agents": np.arange(2)})
    run.log({"epoch": 2, "loss": float("nan")})
    run.write_json("summary.json", {"accuracy": jnp.float32(0.25)})

    assert json.loads((run.path / "config.json").read_text()) == {"lr": 0.1, "hparam": []}
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    rows = [{"epoch": 1, "loss": 0.5, "agents": [0, 1]}, {"epoch": 2, "loss": None}]
    assert [json.loads(line) for line in lines] == rows
    assert run.read_metrics() == rows
    assert json.loads((run.path / "summary.json").read_text()) == {"accuracy": 0.25}
    assert run.figures == run.path / "figures"
    assert run.figures.is_dir()


def test_rows_are_on_disk_at_once(tmp_path):
    run = RunDirectory(tmp_path)
    run.create({})
    for epoch in range(3):
        run.log({"epoch": epoch})
        assert len(RunDirectory(tmp_path).read_metrics()) == epoch + 1


def test_a_directory_with_a_run_is_refused(tmp_path):
    RunDirectory(tmp_path / "run").create({})
    for method in ("check_free", "create"):
        arguments = ({},) if method == "create" else ()
        with pytest.raises(ValueError, match="already holds a run"):
            getattr(RunDirectory(tmp_path / "run"), method)(*arguments)
    # A comparison keeps its runs one level below.
    with pytest.raises(ValueError, match="already holds a run"):
        RunDirectory(tmp_path).check_free()


def test_a_run_goes_on_with_its_own_settings_and_those_it_did_not_know_of(tmp_path):
    run = RunDirectory(tmp_path)
    run.create({"lr": 0.1, "pair": (1, 2), "path": "a"})
    now = {"lr": 0.1, "pair": (1, 2), "path": "b", "new": 3}
    run.check_same(now, ["path"], {"lr": 9.0, "new": 3})
    with pytest.raises(ValueError, match="new was 0, now 3; give the same"):
        run.check_same(now, ["path"], {"lr": 9.0, "new": 0})
    with pytest.raises(ValueError, match=r"lr was 0\.1, now 0\.2; path was 'a', now 'b'; give"):
        run.check_same(now | {"lr": 0.2}, (), {"lr": 0.2, "new": 3})


def test_an_empty_or_foreign_directory_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunDirectory(tmp_path).check_free()


def test_what_is_no_directory_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match="is a file"):
        RunDirectory(file).check_free()
    with pytest.raises(ValueError, match="cannot be written"):
        RunDirectory(file / "below").check_free()


def test_a_json_file_is_whole_or_not_there(tmp_path):
    run = RunDirectory(tmp_path)
    run.write_json("summary.json", {"a": 1})
    with pytest.raises(TypeError):
        run.write_json("summary.json", {"a": object()})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(
    "value, expected",
    [
        (np.int64(3), 3),
        (jnp.arange(2), [0, 1]),
        (np.array([1.0, np.inf]), [1.0, None]),
        (
            {"a": (np.float64("nan"), -float("inf"), "x", None, True)},
            {"a": [None, None, "x", None, True]},
        ),
        ({3: {"b": np.bool_(False)}}, {"3": {"b": False}}),
    ],
)
def test_plain_values_are_what_json_knows(value, expected):
    assert plain(value) == expected
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected
