"""What a result can be trusted for: same seed, same bits; its makers on record; no stray files."""

import datetime
import errno
import fcntl
import json
import os
import shutil
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from ccl_jax.runs import directory, runner
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.training import loop
from experiments import cli, digits
from tests.support import tiny_main

CONFIG = digits.DEFAULTS.replace(
    model="mlp", agents=2, alpha=1.0, epochs=2, algorithm="dsgd", progress=False, eval_every=2
)


def without_seconds(run: directory.RunDirectory) -> list[dict]:
    return [{k: v for k, v in row.items() if "second" not in k} for row in run.read_metrics()]


def arrays(run: directory.RunDirectory) -> dict:
    saved = Checkpoints(run.checkpoints)
    return saved.arrays(saved.steps()[-1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that has ended, and the files around it before and after."""
    assert tiny_main.Mlp is not None
    top = tmp_path_factory.mktemp("trust")
    here = os.getcwd()
    os.chdir(top)
    try:
        run = runner.prepare(CONFIG.replace(workdir=str(top / "a" / "run")))
        assert not any(top.iterdir())  # preparing writes nothing
        summary = runner.execute(run)
    finally:
        os.chdir(here)
    return top, run, summary


def test_two_runs_with_one_seed_are_equal_to_the_bit(finished, tmp_path):
    _, first, _ = finished
    second = runner.prepare(CONFIG.replace(workdir=str(tmp_path / "run")))
    runner.execute(second)
    assert without_seconds(second.directory) == without_seconds(first.directory)
    a, b = arrays(first.directory), arrays(second.directory)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    third = runner.prepare(CONFIG.replace(workdir=str(tmp_path / "other"), seed=1))
    runner.execute(third)
    assert without_seconds(third.directory) != without_seconds(first.directory)


def test_a_run_writes_below_its_directory_only(finished):
    top, run, _ = finished
    assert [p.name for p in top.iterdir()] == ["a"]
    assert [p.name for p in (top / "a").iterdir()] == ["run"]
    assert not any(p.is_symlink() for p in run.directory.path.rglob("*"))


def test_results_say_what_they_were_made_with(finished):
    _, run, summary = finished
    config = json.loads((run.directory.path / "config.json").read_text())
    for made_with in (summary["made_with"], config["made_with"]):
        assert set(directory.PACKAGES) < set(made_with)
        assert made_with["numpy"] == np.__version__
        assert "cpu" in made_with["device"] and made_with["command"]
    assert config["seed"] == 0 and config["algorithm"] == "dsgd"


def test_the_commit_is_recorded_with_whether_files_differ(tmp_path):
    git = lambda *command: subprocess.run(
        ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@x", *command],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert directory.git_commit(tmp_path) is None
    git("init")
    assert directory.git_commit(tmp_path) is None
    (tmp_path / "inside").mkdir()
    files = [tmp_path / "inside" / "code.py", tmp_path / "study.toml", tmp_path / "result.jsonl"]
    for file in files:
        file.write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert directory.git_commit(tmp_path) == commit
    for file, differs in zip(files, ("-dirty", "-dirty", ""), strict=True):
        file.write_text("2")
        assert directory.git_commit(tmp_path) == commit + differs
        file.write_text("1")
    assert directory.git_commit(tmp_path / "inside") is None
    (tmp_path / ".git" / "index").write_text("damaged")
    assert directory.git_commit(tmp_path) is None


def resume(workdir: Path, capsys, *more: str) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    flags = [f"--workdir={workdir}", "--algorithm=dsgd", "--resume", *more]
    code = cli.run_main(digits.main, CONFIG, "", ["digits", *flags])
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return code, said


def test_resuming_what_cannot_be_resumed_says_why(finished, tmp_path, capsys):
    _, run, _ = finished
    code, said = resume(run.directory.path, capsys)
    assert code == 0 and "has ended already" in said
    code, said = resume(run.directory.path, capsys, "--lr=0.2", "--seed=3", "--keep=7")
    assert code == 2 and "lr was 0.1, now 0.2" in said and "seed was 0, now 3" in said
    assert "keep" not in said
    code, said = resume(tmp_path, capsys)
    assert code == 2 and "no run that could go on" in said
    (tmp_path / "config.json").write_text("[1, 2")
    code, said = resume(tmp_path, capsys)
    assert code == 2 and "damaged" in said
    code = cli.run_main(digits.main, CONFIG, "", ["digits", "--algorithm=dsgd", "--resume"])
    assert code == 2 and "--workdir" in capsys.readouterr().err


@pytest.mark.slow
def test_resuming_on_other_devices_agrees_to_rounding(tmp_path):
    """Two epochs on two devices, the third on one."""
    config = CONFIG.replace(algorithm="qg-dsgdm-n", lambda_m=0.1, epochs=3, drop=0.2)
    finals = []
    for name, devices in (("whole", 2), ("moved", 1)):
        here = config.replace(workdir=str(tmp_path / name), devices=2, checkpoint_every=1)
        run = runner.prepare(here)
        runner.execute(run)
        if name == "moved":
            saved = run.directory.checkpoints
            newest = max(Checkpoints(saved).steps())
            shutil.rmtree(saved / str(newest))
            (run.directory.path / "summary.json").unlink()
            runner.execute(runner.prepare(here.replace(devices=devices, resume=True)))
        finals.append(arrays(run.directory))
    for name in finals[0]:
        np.testing.assert_allclose(finals[0][name], finals[1][name], rtol=1e-5, atol=1e-5)


def test_a_directory_in_use_is_refused(tmp_path, capsys):
    run = directory.RunDirectory(tmp_path / "run")
    with run.lock(), pytest.raises(ValueError, match="another run is at work"):  # noqa: SIM117
        with directory.RunDirectory(tmp_path / "run").lock():
            pass
    with run.lock():
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):  # noqa: SIM117
        with directory.RunDirectory(tmp_path / "file" / "run").lock():
            pass


@pytest.mark.parametrize("answer", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_no_busy_directory(answer, tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(fcntl, "flock", flock)
    with directory.RunDirectory(tmp_path / "run").lock():
        assert (tmp_path / "run").is_dir()
    (line,) = capsys.readouterr().err.splitlines()
    assert "run cannot be locked" in line and os.strerror(answer) in line
    answer = errno.EACCES  # What NFS answers where another process holds the lock.
    with pytest.raises(ValueError, match="another run is at work"):  # noqa: SIM117
        with directory.RunDirectory(tmp_path / "run").lock():
            pass


@pytest.fixture
def at_noon(tmp_path, monkeypatch):
    """Runs begin in one second, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    noon = datetime.datetime(2030, 1, 1, 12)
    clock = types.SimpleNamespace(datetime=types.SimpleNamespace(now=lambda: noon))
    monkeypatch.setattr(runner, "datetime", clock)


def test_runs_of_one_second_have_directories_of_their_own(at_noon):
    runs = [runner.prepare(CONFIG.replace(seed=seed, epochs=1)) for seed in (4, 5, 6)]
    assert not Path("runs").exists()  # preparing writes nothing
    for run in runs:
        runner.execute(run)
    found = [json.loads((run.directory.path / "config.json").read_text()) for run in runs]
    assert [config["seed"] for config in found] == [4, 5, 6]
    names = [f"digits-20300101-120000{end}" for end in ("", "-2", "-3")]
    assert [run.directory.path for run in runs] == [Path("runs", name) for name in names]
    assert sorted(os.listdir("runs")) == sorted(names)


def test_so_have_comparisons(at_noon, monkeypatch, capsys):
    prepare = runner.prepare

    def slowly(config, dataset):
        (Path("runs") / "digits-20300101-120000").mkdir(parents=True, exist_ok=True)  # another's
        return prepare(config, dataset)

    monkeypatch.setattr(runner, "prepare", slowly)
    assert cli.run_main(digits.main, CONFIG.replace(epochs=1), "", ["digits"]) == 0
    ours = Path("runs") / "digits-20300101-120000-2"
    assert f"run directory: {ours}" in capsys.readouterr().out
    assert not os.listdir("runs/digits-20300101-120000")
    for name in ("dsgdm-n", "qg-dsgdm-n", "ccl"):
        assert json.loads((ours / name / "config.json").read_text())["workdir"] == str(ours / name)
        assert (ours / name / "summary.json").exists()
    assert (ours / "comparison.json").exists()


def test_figures_that_cannot_be_drawn_lose_nothing(tmp_path, monkeypatch, capsys):
    order = []

    def fail(*_, **__):
        order.append((tmp_path / "run" / "summary.json").exists())
        raise RuntimeError("no such font")

    monkeypatch.setattr(Figure, "savefig", fail)
    flags = [f"--workdir={tmp_path / 'run'}", "--algorithm=dsgd", "--epochs=1"]
    assert cli.run_main(digits.main, CONFIG, "", ["digits", *flags]) == 0
    out, err = capsys.readouterr()
    assert [line.split(" could not be drawn: ")[1] for line in err.splitlines()] == [
        "no such font"
    ] * 2
    assert order == [False, True]  # who holds what, at the start, and the curves
    assert "run directory" in out


def test_resuming_under_other_settings_of_jax_is_said(finished, tmp_path, capsys):
    shutil.copytree(finished[1].directory.path, run := tmp_path / "run")
    (run / "summary.json").unlink()
    config = json.loads((run / "config.json").read_text())
    config["made_with"]["jax_settings"]["jax_enable_x64"] = True
    config["made_with"] |= {"xla_flags": "--xla_a", "instruction_set": "x86_64 SSE4_2"}
    (run / "config.json").write_text(json.dumps(config))
    code, said = resume(run, capsys)
    (line,) = (line for line in said.splitlines() if line.startswith("warning: "))
    assert code == 0
    assert "jax_enable_x64 True -> " in line and "xla_flags --xla_a -> " in line
    assert "instruction_set x86_64 SSE4_2 -> " in line


@pytest.mark.slow
def test_rollback_goes_on_with_a_lower_rate_and_gives_up_in_the_end(tmp_path, capsys):
    """A learning rate of 1e36 overflows, as does a tenth of it, three times over."""
    config = CONFIG.replace(lr=1e36, on_divergence="rollback", epochs=1, schedule="constant")
    run = runner.prepare(config.replace(workdir=str(tmp_path / "run")))
    with pytest.raises(loop.Diverged, match="agent"):
        runner.execute(run)
    said = capsys.readouterr().err
    assert said.count("times less learning rate") == 3
    last = run.directory.read_metrics()[-1]
    assert last["lr"] == pytest.approx(1e33) and last["rollbacks"] == 3 and last["diverged"]


def test_a_checkpoint_that_diverges_again_is_left_for_the_one_before(tmp_path, monkeypatch):
    """As where the parameters are finite still, but no learning rate leads on from them."""
    config = CONFIG.replace(on_divergence="rollback", epochs=3, checkpoint_every=1, keep=3)
    run = runner.prepare(config.replace(workdir=str(tmp_path / "run")))
    fit, started = loop.fit, []

    def failing(*arguments, start, **options):
        started.append(start.epoch)
        if len(started) == 1:  # Saves the ends of all epochs before it fails.
            fit(*arguments, start=start, **options)
        if len(started) < 4:
            raise loop.Diverged("agent 0")
        return fit(*arguments, start=start, **options)

    monkeypatch.setattr(loop, "fit", failing)
    runner.execute(run)
    assert started == [1, 4, 3, 2]
    rows = run.directory.read_metrics()
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row.get("rollbacks") for row in rows] == [None, 3, 3]


@settings(deadline=None, max_examples=40)
@given(text=st.binary(max_size=80) | st.from_regex(rb"(--[a-z_]{2,12}(=.{0,9})?\n){1,5}"))
def test_flag_files_of_any_content_are_answered_in_one_line(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("flags") / "run.flags"
    file.write_bytes(text)
    seen = []
    code = cli.run_main(
        lambda config, given: seen.append(config), CONFIG, "", ["x", f"--flagfile={file}"]
    )
    # Read and passed on as a checked Config, or refused.
    assert (code, len(seen)) in ((0, 1), (0, 0), (2, 0))


def _itself(file: Path) -> None:
    file.write_text(f"--lr=0.2\n--flagfile={file}\n")


def _each_other(file: Path) -> None:
    other = file.with_suffix(".other")
    file.write_text(f"--flagfile={other}\n")
    other.write_text(f"--flagfile={file}\n")


@pytest.mark.parametrize(
    "make",
    [
        lambda file: file.write_text("lr is 0.1\n"),
        lambda file: file.write_text("--no_such_flag=1\n"),
        lambda file: file.write_text("--lr=fast\n"),
        lambda file: file.write_bytes(bytes(range(256)) * 20),
        lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\xff\xfe"),
        lambda file: file.mkdir(),
        lambda file: None,
        lambda file: file.write_text(f"--flagfile={file.with_name('nowhere')}\n"),
        lambda file: file.symlink_to(file),
        _itself,
        _each_other,
    ],
    ids=["words", "unknown", "no number", "bytes", "png", "folder", "missing", "names a missing one",
         "link to itself", "itself", "each other"],
)  # fmt: skip
def test_a_flag_file_that_is_none_gets_one_line(tmp_path, capsys, make):
    file = tmp_path / "run.flags"
    make(file)
    code = cli.run_main(
        lambda config, given: pytest.fail("ran"), CONFIG, "", ["x", f"--flagfile={file}"]
    )
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert (code, out) == (2, "") and line.startswith("error: ")
