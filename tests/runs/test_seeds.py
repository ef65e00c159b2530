"""Several seeds: runs as if each were alone, packed into one program or not, and their table."""

import contextlib
import json
import os
import signal

import jax
import jax.numpy as jnp
import pytest

import ccl_jax
from ccl_jax.runs import packed, seeds, trainer
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.runs.directory import RunDirectory
from ccl_jax.runs.summary import seeds_table
from ccl_jax.training.ledger import Diverged
from experiments import compare
from tests.support import tiny_main
from tests.support.small_run import same_rows, without_seconds

# Twelve steps an epoch for every seed.
FLAGS = (
    "--algorithm=qg-dsgdm-n",
    "--lambda_m=0.1",
    "--lambda_d=0.1",
    "--agents=4",
    "--partition=iid",
    "--epochs=2",
    "--eval_every=1",
    "--nofigures",
)
SEEDS = (2, 3, 4)


def run(path, *flags):
    """The exit code."""
    return tiny_main.main(["digits", f"--workdir={path}", *FLAGS, "--seed=2", *flags])


def rows_of(path):
    return without_seconds(RunDirectory(path).read_metrics())


def files(path):
    """All but what orbax names at random."""
    saved = (path / "checkpoints").glob("*")
    return {file.name for file in (*path.iterdir(), *saved)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Each seed by itself, on one device."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in SEEDS:
        assert run(folder / f"seed-{seed}", f"--seed={seed}", "--devices=1") == 0
    return folder


@pytest.mark.parametrize(
    "how",
    [
        ("--pack_seeds=yes", "--devices=1"),
        ("--pack_seeds=yes", "--devices=4"),
        ("--pack_seeds=yes", "--devices=8", "--batch_devices=2"),
        ("--pack_seeds=no", "--devices=1"),
    ],
)
def test_seeds_are_what_they_are_alone(alone, tmp_path, capsys, how):
    assert run(tmp_path / "all", "--seeds=3", *how) == 0
    out, err = capsys.readouterr()
    assert "mean ± standard deviation" in out
    assert (how[0] == "--pack_seeds=yes") == ("seeds 2, 3, 4 train as one program" in err)
    assert {path.name for path in (tmp_path / "all").iterdir()} == {f"seed-{s}" for s in SEEDS}
    for seed in SEEDS:
        own, other = tmp_path / "all" / f"seed-{seed}", alone / f"seed-{seed}"
        assert files(own) == files(other)
        settings, wanted = (RunDirectory(d).settings() for d in (own, other))
        differ = {name for name in wanted if settings[name] != wanted[name]}
        assert differ <= {"workdir", "made_with", "devices", "batch_devices", "pack_seeds"}
        assert settings["seed"] == seed and settings["seeds"] == 1
        for row, expected in zip(rows_of(own), rows_of(other), strict=True):
            for name, value in expected.items():
                exact = "bytes" in name or name in ("epoch", "step")
                # Two of 360 test images may fall on the other side by rounding.
                bound = {"abs": 2 / 360} if "accuracy" in name else {"rel": 1e-3}
                assert row[name] == (value if exact else pytest.approx(value, **bound)), name
        summary = RunDirectory(own).summary()
        assert summary["seed"] == seed and summary["steps"] == 24
        assert ccl_jax.load_run(own).config.seed == seed


def test_they_stop_together_and_go_on_to_the_bit(tmp_path, monkeypatch, capsys):
    packing = ("--pack_seeds=yes", "--seeds=3", "--devices=1")
    assert run(tmp_path / "whole", *packing) == 0

    @contextlib.contextmanager
    def stop_after_seven():
        answers = iter([0] * (2 + 6) + [signal.SIGTERM])
        yield lambda: next(answers)

    with monkeypatch.context() as patch:
        patch.setattr(packed, "stop_signals", stop_after_seven)
        assert run(tmp_path / "run", *packing) == 143
    for seed in SEEDS:
        assert Checkpoints(tmp_path / "run" / f"seed-{seed}" / "checkpoints").steps() == [7]
    capsys.readouterr()
    assert run(tmp_path / "run", *packing, "--resume") == 0
    said = capsys.readouterr().err
    assert said.count("goes on after step 7") == 3 and "train as one program" in said
    for seed in SEEDS:
        ends = [tmp_path / name / f"seed-{seed}" for name in ("run", "whole")]
        same_rows(*map(rows_of, ends))
        arrays = [Checkpoints(end / "checkpoints").arrays(24) for end in ends]
        jax.tree.map(lambda x, y: (x == y).all() or pytest.fail("differs"), *arrays)


def test_a_signal_while_one_seed_ends_is_for_all(tmp_path, monkeypatch, capsys):
    write = RunDirectory.write_json

    def write_json(self, name, *rest):
        write(self, name, *rest)
        if name == "summary.json":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunDirectory, "write_json", write_json)
    assert run(tmp_path, "--seeds=2", "--pack_seeds=no", "--devices=1") == 128 + signal.SIGTERM
    assert "--resume goes on" in capsys.readouterr().err
    assert RunDirectory(tmp_path / "seed-2").summary()
    assert not RunDirectory(tmp_path / "seed-3").read_metrics()
    monkeypatch.undo()
    assert run(tmp_path, "--seeds=2", "--pack_seeds=no", "--devices=1", "--resume") == 0
    assert RunDirectory(tmp_path / "seed-3").summary()


def test_a_summary_that_a_power_cut_has_emptied_is_named_and_made_again(tmp_path, capsys):
    assert run(tmp_path, "--devices=1") == 0
    file = tmp_path / "summary.json"
    before = json.loads(file.read_text())
    file.write_text("")
    capsys.readouterr()
    assert run(tmp_path, "--devices=1", "--resume") == 2
    assert f"{file} is damaged: Expecting" in capsys.readouterr().err
    file.unlink()
    assert run(tmp_path, "--devices=1", "--resume") == 0
    after = json.loads(file.read_text())
    assert after["consensus_accuracy"] == before["consensus_accuracy"]


def test_seeds_that_are_at_other_steps_or_new_are_grouped_and_those_that_ended_are_left(
    tmp_path, capsys
):
    packing = ("--pack_seeds=yes", "--devices=1")
    assert run(tmp_path / "run", "--seeds=2", *packing) == 0
    before = rows_of(tmp_path / "run" / "seed-2")
    (tmp_path / "run" / "seed-3" / "summary.json").unlink()
    capsys.readouterr()
    assert run(tmp_path / "run", "--seeds=4", "--resume", *packing) == 0
    out, err = capsys.readouterr()
    assert "only seeds of equal steps done run together: 3; 4, 5" in err
    assert "seed-2 has ended already" in err and "seed-3 goes on after step 24" in err
    assert "seeds 4, 5 train as one program" in err
    assert rows_of(tmp_path / "run" / "seed-2") == before
    assert out.count("CCL + qg-dsgdm-n, seed") == 4


def test_seeds_of_other_numbers_of_steps_run_by_themselves(tmp_path, capsys):
    flags = (
        "--partition=dirichlet-clean",
        "--alpha=1",
        "--pack_seeds=yes",
        "--epochs=1",
        "--seeds=3",
        "--devices=1",
    )
    assert run(tmp_path / "run", *flags) == 0
    steps = [RunDirectory(tmp_path / "run" / f"seed-{s}").summary()["steps"] for s in SEEDS]
    assert len(set(steps)) == 3
    said = capsys.readouterr().err
    assert "only seeds of equal steps of an epoch run together: 2; 3; 4" in said


def test_one_that_diverges_says_so_and_the_others_end_well(tmp_path, monkeypatch, capsys):
    begin = trainer.begin

    def spoiled(run, saved):
        state, start = begin(run, saved)
        factor = jnp.float32(jnp.inf if run.config.seed == 3 else 1.0)
        return state._replace(params=jax.tree.map(lambda x: x * factor, state.params)), start

    monkeypatch.setattr(trainer, "begin", spoiled)
    for name, pack in (("one", "yes"), ("other", "no")):
        path = tmp_path / name
        assert run(path, "--seeds=3", f"--pack_seeds={pack}", "--devices=1", "--quiet") == 1
        out, err = capsys.readouterr()
        assert "seed 3: the loss is no longer finite at step 1, agent 0" in err
        assert err.splitlines()[-1].startswith("error: 1 of 3 runs have diverged")
        ended = [seed for seed in SEEDS if (path / f"seed-{seed}" / "summary.json").exists()]
        assert ended == [2, 4]
        assert "diverged" in rows_of(path / "seed-3")[-1]
        assert "seed 2 " in out and "seed 3 " not in out and "seed 4 " in out


def test_what_can_be_gone_on_with_is_a_run_that_has_not_diverged(tmp_path, monkeypatch, capsys):
    begin = trainer.begin

    def spoiled(run, saved):
        state, start = begin(run, saved)
        factor = jnp.float32(jnp.inf if run.config.seed <= last_bad else 1.0)
        return state._replace(params=jax.tree.map(lambda x: x * factor, state.params)), start

    monkeypatch.setattr(trainer, "begin", spoiled)
    for last_bad, path in ((2, tmp_path / "one"), (3, tmp_path / "all")):
        assert run(path, "--seeds=2", "--epochs=1", "--devices=1") == 1
        said = capsys.readouterr().out
        assert (f"--run={path}/seed-3" in said) == (last_bad == 2)
        assert f"--run={path}/seed-2" not in said and ("next:" in said) == (last_bad == 2)


@pytest.mark.parametrize(
    "flags, why",
    [
        (["--on_divergence=rollback"], "--on_divergence=rollback"),
        (["--drop=0.1"], "faults, which are drawn by the seed"),
        (["--message_noise=0.1"], "--message_noise, which is drawn by the seed"),
        (["--feature_shift=noise:0.1"], "--feature_shift"),
        (["--spmd=pmap", "--devices=4"], "--spmd=pmap"),
    ],
)
def test_what_cannot_be_packed_runs_one_by_one_and_says_why(tmp_path, capsys, flags, why):
    assert run(tmp_path / "run", "--seeds=2", "--pack_seeds=yes", "--epochs=1", *flags) == 0
    err = capsys.readouterr().err
    assert f"note: seeds run one after another, as they have {why}\n" in err
    assert all((tmp_path / "run" / f"seed-{s}" / "summary.json").exists() for s in (2, 3))


def test_graphs_that_the_seed_draws_are_not_packed(tmp_path, capsys):
    flags = ("--topology=random-matching", "--seeds=2", "--pack_seeds=yes", "--epochs=1")
    assert run(tmp_path / "run", *flags, "--algorithm=dsgd", "--lambda_m=0", "--lambda_d=0") == 0
    assert "only seeds of equal graph run together: 2; 3" in capsys.readouterr().err


def test_a_comparison_has_its_seeds_by_method(tmp_path, capsys):
    flags = ("--agents=3", "--seeds=2", "--epochs=1", "--devices=1", "--nofigures")
    assert tiny_main.main(["digits", f"--workdir={tmp_path / 'c'}", *flags]) == 0
    out = capsys.readouterr().out
    for method in ("dsgdm-n", "qg-dsgdm-n", "ccl"):
        for seed in (0, 1):
            assert RunDirectory(tmp_path / "c" / method / f"seed-{seed}").summary()["seed"] == seed
    assert out.count(", seed 1 ") == 3 and " 2 " in out
    assert f"python -m experiments.compare {tmp_path / 'c'}\n" in out
    names = [
        f"{method}/seed-{seed}" for method in ("ccl", "dsgdm-n", "qg-dsgdm-n") for seed in (0, 1)
    ]
    assert [run.name for run in compare.read([tmp_path / "c"])] == names


def test_a_table_of_means_and_standard_deviations():
    def summary(mean):
        names = ("local_accuracy_mean", "local_accuracy_min", "local_accuracy_max")
        values = dict.fromkeys((*names, "consensus_accuracy"), mean)
        return values | {"label": "ccl", "bytes_sent_per_agent": 2_000_000}

    # The root of (0.1^2 + 0.1^2) / (2 - 1).
    (row,) = seeds_table([[summary(0.5), summary(0.7)]]).splitlines()[2:]
    assert row.split("  ")[:1] == ["ccl"]
    assert row.count("60.00 ± 14.14%") == 4 and row.endswith("2.00 ± 0.00") and " 2 " in row
    (row,) = seeds_table([[summary(0.5)]]).splitlines()[2:]
    assert row.count("50.00%") == 4 and "±" not in row


def test_in_code(tmp_path, monkeypatch):
    config = tiny_main.DEFAULTS.replace(epochs=1, figures=False, partition="iid", devices=1)
    monkeypatch.chdir(tmp_path)
    results = ccl_jax.train_seeds(config.replace(pack_seeds="yes"), (7, 1))
    assert [summary["seed"] for summary in results.values()] == list(results) == [7, 1]
    (folder,) = (tmp_path / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"seed-7", "seed-1"}
    with pytest.raises(ValueError, match=r"take ccl_jax\.train_seeds"):
        ccl_jax.train(config.replace(seeds=2))
    with pytest.raises(ValueError, match="must be different ones"):
        ccl_jax.train_seeds(config, (1, 1))
    assert seeds.done([Diverged("x"), {"seed": 1}]) == [{"seed": 1}]


def test_nothing_to_go_on_with_is_refused(tmp_path, capsys):
    assert run(tmp_path / "run", "--seeds=2", "--resume") == 2
    assert "holds no runs of these seeds" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert run(tmp_path / "run", "--seeds=2", "--epochs=1") == 0
    assert run(tmp_path / "run", "--seeds=2") == 2
    assert "already holds a run" in capsys.readouterr().err
    # Nor is one sent to and fro between --resume and none.
    for place, flags, said in (
        ("run", (), "it holds the runs seed-2, seed-3; give the path of one"),
        ("run", ("--seeds=2", "--seed=7"), "it holds the runs seed-2, seed-3; give the flags with"),
        ("run/seed-2", ("--seeds=2",), "it is one run; leave out --seeds"),
    ):
        assert run(tmp_path / place, *flags, "--resume") == 2
        assert said in capsys.readouterr().err
    assert json.loads((tmp_path / "run" / "seed-2" / "config.json").read_text())["seeds"] == 1
