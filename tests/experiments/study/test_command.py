"""Studies: files expand to valid runs, runs are shared, survive interruption, and may diverge."""

import json
import os
import signal
import time

import numpy as np
import pytest

from ccl_jax import algorithms
from ccl_jax.runs import inputs, runner
from ccl_jax.runs.config import Config
from experiments import digits
from experiments.study import catalogue, command, records
from tests.support import tiny_main  # noqa: F401 (registers the model "mlp")
from tests.support.studies import SMALL, fake_record


@pytest.fixture(scope="module", autouse=True)
def one_compile_cache():
    """Runs of tests keep the cache that all tests share."""
    prepare = runner.prepare
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runner,
            "prepare",
            lambda config, *rest: prepare(config.replace(compile_cache=None), *rest),
        )
        yield


def test_orthogonality_has_every_method_of_the_registry_that_sends_something():
    plan = catalogue.load("orthogonality")
    used = {job.config.algorithm for job in plan.jobs()}
    assert used == set(algorithms.REGISTRY) - {"isolated"}


def test_a_method_is_stronger_than_the_cell_and_the_cell_than_the_data(write):
    text = """
    seeds = [7]
    [settings]
    lr = 0.5
    alpha = 3
    topology = "full"
    [axes.graph]
    "of 5" = { agents = 5, topology = "chain" }
    [methods]
    "tree" = { topology = "star", clip_norm = 2.0 }
    "plain" = { clip_norm = "default" }
    [data.small]
    main = "digits"
    [data.small.settings]
    lr = 0.25
    agents = 9
    """
    tree, plain = catalogue.load(write(text), "small").jobs()
    assert (tree.config.topology, plain.config.topology) == ("star", "chain")
    assert (tree.config.agents, tree.config.lr, tree.config.alpha) == (5, 0.25, 3.0)
    assert (tree.config.clip_norm, plain.config.clip_norm) == (2.0, None)
    assert tree.config.seed == 7 and str(tree) == "tree, of 5, seed 7"
    assert catalogue.load(write(text), "small", (1, 2), epochs=3).jobs()[-1].config.epochs == 3


# Defaults that have changed since runs are known by what differs from them.
OLD = {"eval_every": 1, "model": "lenet5"}


def test_an_identity_is_what_is_computed_and_nothing_else():
    config = Config(lr=0.3)
    same = config.replace(workdir="x", devices=3, progress=False, figures=False, data_dir="y")
    assert catalogue.identity(config) == catalogue.identity(same)
    others = [config.replace(lr=0.1), config.replace(seed=1), config.replace(validation=0.1)]
    assert len({catalogue.identity(c) for c in [config, *others]}) == 4
    assert catalogue.settings_of(Config(**OLD)) == {}
    assert catalogue.settings_of(Config(eval_every=1)) == {"model": "digits-cnn"}


def test_identities_outlive_a_change_of_defaults():
    """Records are known by what they computed, whatever the mains evaluate by default."""
    known = catalogue.FOLDER.parents[1] / "results" / "main_table-digits" / "runs.jsonl"
    (*_, record) = records.read(known)
    plan = catalogue.load("main_table")
    assert plan.defaults.eval_every == 2 and record["settings"]["eval_every"] == 2
    for name in catalogue.names():
        for data in catalogue.datasets(name):
            table = catalogue.tomllib.loads((catalogue.FOLDER / f"{name}.toml").read_text())
            given = table.get("settings", {}) | table["data"][data].get("settings", {})
            assert "eval_every" in given, (name, data)
    # As of the first runs, which had other defaults.
    assert "eval_every" not in catalogue.settings_of(Config(eval_every=1))
    assert catalogue.identity(Config(**OLD, lr=0.3, seed=4)) == "9e93efadd540"
    assert catalogue.identity(Config(**OLD | {"eval_every": 3}, lr=0.3, seed=4)) == "a662cd2f1410"
    plain = {"summary": {}, "settings": {}}
    assert {name: records.value(plain, name) for name in OLD} == OLD


def test_identities_of_all_records_are_those_of_their_settings():
    results = catalogue.FOLDER.parents[1] / "results"
    count = 0
    for file in sorted(results.glob("*-*/runs.jsonl")):
        for record in records.read(file):
            given = OLD | record["settings"]
            given = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            assert catalogue.identity(Config(**given)) == record["id"]
            count += 1
    assert count >= 1799


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--study is missing; it is one of ablation"),
        (["--study=first_tree"], "did you mean 'first_three'"),
        (["--study=agents", "--data=mnist"], "unknown dataset of this study 'mnist'"),
        (["--study=agents", "--seeds=a"], "write them as 0,1,2"),
        (["--study=first_three", "--seeds=0,1,0"], "seeds: 0 is given 2 times; give it once"),
        (["agents"], "'agents' is not a flag"),
        (["--workers=0"], "workers"),
    ],
)
def test_what_is_wrong_on_the_command_line(capsys, flags, message):
    assert command.main(["study", *flags]) == 2
    assert message in capsys.readouterr().err


def test_lists(capsys, tmp_path):
    assert command.main(["study", "--list"]) == 0
    assert "first_three" in (out := capsys.readouterr().out) and out.count("\n") == 13
    assert command.main(["study", "--study=main_table", "--list", f"--results={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert out.count("(tuning)") == 24 and "and then 240 runs" in out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Results of a study of which one method diverges: (study file, results)."""
    folder = tmp_path_factory.mktemp("whole")
    text = SMALL.replace("seeds = [0, 1]", "seeds = [0]")
    wild = '"wild" = { algorithm = "dsgdm-n", lr = 1e30 }\n'
    (folder / "mine.toml").write_text(text.replace("[data.", wild + "[data.", 1))
    command.run(catalogue.load(str(folder / "mine.toml")), folder / "results")
    return folder / "mine.toml", folder / "results"


def test_keeps_what_tables_and_figures_need(whole):
    _, results = whole
    plain, ccl, _ = records.read(results / "mine-digits" / "runs.jsonl")
    assert (plain["seed"], plain["status"]) == (0, "done")
    assert "model_variant_loss" not in plain["summary"] and ccl["summary"]["model_variant_loss"] > 0
    assert plain["rows"]["epoch"] == [1, 2] and len(plain["rows"]["consensus_accuracy"]) == 2
    assert plain["cost"]["exchanges"] == 1 and ccl["cost"]["exchanges"] == 2
    assert records.value(plain, "lambda_m") == 0.0 and records.value(ccl, "lambda_m") == 0.1
    assert np.array(plain["samples_by_agent_and_class"]).shape == (3, 10)
    assert not list(results.glob("runs/*/checkpoints")) and not list(results.glob("runs/*/figures"))


def test_every_feature_loss_is_kept_by_its_name(tmp_path):
    config = digits.DEFAULTS.replace(
        algorithm="dsgd", agents=2, alpha=10.0, batch_size=256, epochs=2, eval_every=1,
        feature_loss=("prototype:0.1",), progress=False,
    )  # fmt: skip
    record = records.run(config, tmp_path)
    curve = record["rows"]["prototype_loss"]
    assert len(curve) == 2 and min(curve) > 0
    assert record["summary"]["prototype_loss"] == curve[-1]
    assert record["summary"]["prototype_loss_mean"] == pytest.approx(sum(curve) / 2, rel=1e-5)
    assert record["settings"]["feature_loss"] == ["prototype:0.1"]
    assert "model_variant_loss" not in record["rows"] | record["summary"]


def test_a_run_that_diverges_is_a_result(whole):
    _, results = whole
    wild = records.read(results / "mine-digits" / "runs.jsonl")[2]
    assert wild["status"] == "diverged" and wild["step"] >= 1
    assert "no longer finite at step" in wild["reason"]
    json.dumps(wild, allow_nan=False)
    assert wild["classes"] == 10


def test_runs_only_what_is_missing(whole, tmp_path, capsys, monkeypatch):
    path, results = whole
    # What is committed is enough: no files of the runs themselves, and by way of another study.
    (tmp_path / "other-digits").mkdir()
    committed = (results / "mine-digits" / "runs.jsonl").read_text()
    (tmp_path / "other-digits" / "runs.jsonl").write_text(committed)
    made = []
    monkeypatch.setattr(
        records, "run", lambda config, _: made.append(config) or fake_record(config)
    )
    assert command.main(["study", f"--study={path}", f"--results={tmp_path}", "--seeds=0,1"]) == 0
    assert [(config.seed, config.lr) for config in made] == [(1, 0.1), (1, 0.1), (1, 1e30)]
    error = capsys.readouterr().err
    assert "3 of 6 runs are there already" in error and "3/3 wild, seed 1" in error
    found = records.read(tmp_path / "mine-digits" / "runs.jsonl")
    assert [r["seed"] for r in found] == [0, 0, 0, 1, 1, 1]


def test_another_length_is_evaluated_as_often_and_lies_apart(write, tmp_path, capsys, monkeypatch):
    made = []
    monkeypatch.setattr(
        records, "run", lambda config, _: made.append(config) or fake_record(config)
    )
    path = write(SMALL.replace("epochs = 2\neval_every = 1", "epochs = 100\neval_every = 5"))
    argv = ["study", f"--study={path}", f"--results={tmp_path}", "--seeds=0"]
    assert command.main([*argv, "--epochs=40"]) == 0
    assert {(config.epochs, config.eval_every) for config in made} == {(40, 2)}
    assert "mine-digits-40-epochs/runs.jsonl" in capsys.readouterr().err
    plan = catalogue.load(path).of_length(5)
    assert {job.config.eval_every for job in plan.jobs()} == {1}
    assert plan.options == f"--study={path} --epochs=5"
    auto = catalogue.load(write(SMALL.replace("eval_every = 1", 'eval_every = "auto"')))
    assert {job.config.eval_every for job in auto.of_length(5).jobs()} == {"auto"}
    assert command.main([*argv, "--epochs=0"]) == 2


def test_goes_on_after_an_interruption(whole, write, tmp_path, capsys, monkeypatch):
    path = write(SMALL.replace("seeds = [0, 1]", "seeds = [0]").replace('"ccl"', '# "ccl"'))
    argv = ["study", f"--study={path}", f"--results={tmp_path}/results"]
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "throughput", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or {})
        assert command.main(argv) == 143
    error = capsys.readouterr().err
    assert "0 of 1 runs are in" in error and "the same command goes on" in error
    assert command.main(argv) == 0
    assert "goes on after step" in capsys.readouterr().err
    (resumed,) = records.read(tmp_path / "results/mine-digits/runs.jsonl")
    straight = records.read(whole[1] / "mine-digits/runs.jsonl")[0]
    assert resumed["id"] == straight["id"] and resumed["rows"] == straight["rows"]


def test_records_are_added_as_runs_finish_and_after_some_time_it_stops(
    write, tmp_path, capsys, monkeypatch
):
    file, seen = tmp_path / "mine-digits" / "runs.jsonl", []

    def slow(config, results):
        seen.append(len(records.read(file)) if file.exists() else 0)
        if len(seen) == 3:
            signal.pause()
        return fake_record(config)

    monkeypatch.setattr(records, "run", slow)
    argv = ["study", f"--study={write(SMALL)}", f"--results={tmp_path}"]
    began = time.monotonic()
    assert command.main([*argv, f"--hours={2 / 3600}"]) == 143
    assert time.monotonic() - began < 30
    assert seen == [0, 1, 2] and len(records.read(file)) == 3
    assert "the same command goes on" in capsys.readouterr().err
    assert command.main([*argv, "--hours=1"]) == 0
    assert len(records.read(file)) == 4
    assert command.main([*argv, "--hours=0"]) == 2


@pytest.mark.parametrize("first", ["", "\n", "# which study\n", "// which study\n"])
def test_a_flag_file_with_a_byte_order_mark(tmp_path, capsys, first):
    (tmp_path / "some.flags").write_text(f"{first}--study=rounds\n--list\n", "utf-8-sig")
    (tmp_path / "other.flags").write_text(f"--flagfile={tmp_path}/some.flags\n", "utf-8")
    for name in ("some", "other"):
        assert command.main(["study", f"--flagfile={tmp_path}/{name}.flags"]) == 0
        assert capsys.readouterr().out.startswith("rounds on digits: ")
    (tmp_path / "other.flags").write_text(f"--flagfile={tmp_path}/some.flags\n", "utf-8-sig")
    assert command.main(["study", f"--flagfile={tmp_path}/other.flags"]) == 2
    assert "some.flags follows a byte-order mark; put an empty" in capsys.readouterr().err


@pytest.mark.parametrize("damaged", ["{}\n{", "{\n", '{"id": "a"}\n\udcff\n', "\n"])
def test_a_damaged_record_file_is_said(write, tmp_path, capsys, damaged):
    (tmp_path / "r" / "mine-digits").mkdir(parents=True)
    file = tmp_path / "r" / "mine-digits" / "runs.jsonl"
    file.write_text(damaged, errors="surrogateescape")
    assert (
        command.main(["study", f"--study={write(SMALL)}", f"--results={tmp_path}/r", "--list"]) == 2
    )
    said = capsys.readouterr().err
    assert "is damaged in line" in said and "remove this line" in said
    file.unlink()
    (tmp_path / "r" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "r" / "runs" / "one" / "record.json").touch()
    assert (
        command.main(["study", f"--study={write(SMALL)}", f"--results={tmp_path}/r", "--list"]) == 2
    )
    assert "one/record.json is damaged" in capsys.readouterr().err


def test_a_record_that_was_cut_off_is_made_again_and_the_others_stay(tmp_path):
    file = tmp_path / "runs.jsonl"
    for name in ("a", "b"):
        records.append(file, {"id": name})
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    assert records.read(file) == [{"id": "a"}]
    records.append(file, {"id": "c"})
    assert records.read(file) == [{"id": "a"}, {"id": "c"}]
    # Only the end of the line is missing, as an editor may leave it.
    file.write_bytes(whole[:-1])
    assert records.read(file) == [{"id": "a"}, {"id": "b"}]
    records.append(file, {"id": "c"})
    assert file.read_bytes() == whole + b'{"id":"c"}\n'
