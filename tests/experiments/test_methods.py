"""The table of methods and the table of their settings."""

import re

import pytest

from ccl_jax import algorithms, losses
from ccl_jax.training import schedules
from experiments import methods, settings


def test_the_table_lists_every_method(capsys):
    assert methods.main(["methods"]) == 0
    said, _, costs = capsys.readouterr().out.partition("\n\nmethod ")
    first = {line.split()[0]: line for line in said.splitlines() if line}
    entries = {**algorithms.REGISTRY, **losses.REGISTRY}
    assert all(first[name].endswith(f"  {entry.summary}") for name, entry in entries.items())
    assert max(map(len, said.splitlines())) <= 110
    lines = {line.split()[0]: line for line in costs.splitlines() if line}
    for name, method in algorithms.REGISTRY.items():
        assert method.reference in lines[name]
        assert method.graph in lines[name]
    shown = lambda name: lines[name].split("  ")[0:]
    for name, exchanges, sends, gradients in [
        ("dsgdm-n", "1", "1 P d", "1"),
        ("dsgt", "1", "2 P d", "1"),
        ("momentum-tracking", "1", "2 P d", "1"),
        ("beer", "2", "2 P d", "1"),
        ("choco-sgd", "1", "1 P d", "1"),
        ("muon", "1", "1 P d", "1"),
        ("demuon", "2", "2 P d", "1"),
        ("cga", "2", "2 P d", "1 + d"),
        ("comp-ngc", "2", "1.03 P d", "1 + d"),  # 1 + 1/32
        ("relaysgd", "1", "1 P d", "1"),
        ("led", "1", "1 P d", "1"),
        ("k-gt", "1", "2 P d", "1"),
        ("aug-dgm", "2", "2 P d", "1"),
        ("fedavg", "1", "1 P d", "1"),
        ("all-reduce", "1", "2 P (N-1)/N", "1"),
        ("isolated", "0", "nothing", "1"),
    ]:
        cells = [cell.strip() for cell in shown(name) if cell.strip()]
        assert cells[1:4] == [exchanges, sends, gradients]


def test_the_table_lists_every_feature_loss(capsys):
    assert methods.main(["methods"]) == 0
    text = capsys.readouterr().out
    rows = [re.split(r"  +", line) for line in text[text.rindex("feature loss") :].splitlines()]
    cells = {name: rest for name, *rest in rows[2:]}
    assert {name: row[:4] for name, row in cells.items()} == {
        "model_variant": ["d", "nothing", "nothing", "none"],
        "data_variant": ["d", "S d", "nothing", "none"],
        "decorrelation": ["0", "nothing", "nothing", "none"],
        "feature_norm": ["0", "nothing", "nothing", "none"],
        "logit_distillation": ["d", "nothing", "nothing", "temperature=3"],
        "moon": ["d + 1", "nothing", "nothing", "temperature=0.5"],
        "moon, local steps": ["2", "nothing", "2 P", "temperature=0.5"],
        "prototype": ["0", "S d", "S", "none"],
    }
    assert all(losses.get(name).reference in text for name in losses.REGISTRY)


def test_one_method_in_detail(capsys):
    assert methods.main(["methods", "--algorithm=momentum-tracking"]) == 0
    text = capsys.readouterr().out
    for part in ("arXiv:2209.15505", "doubly stochastic", "2 P d", "start = 'zero'", "published"):
        assert part in text


def test_one_feature_loss_in_detail(capsys):
    assert methods.main(["methods", "--feature_loss=moon"]) == 0
    text = capsys.readouterr().out
    for part in (
        "arXiv:2103.16257",
        "neighbours' models on my data",
        "passes: d + 1",
        "with local",
    ):
        assert part in text
    for part in ("my model as it was last mixed", "keeps: 2 P", "temperature = 0.5", "weight=5.0"):
        assert part in text
    assert methods.main(["methods", "--feature_loss=feature_norm"]) == 0
    assert "it hears       nothing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flag, answer",
    [
        ("--feature_loss=mon", "did you mean 'moon'"),
        ("--algorithm=dgsd", "did you mean 'dsgd'"),
        ("--algorithm=ccl", "loss"),
        ("x", "not a flag"),
    ],
)
def test_errors_exit_2(flag, answer, capsys):
    assert methods.main(["methods", flag]) == 2
    assert answer in capsys.readouterr().err


def test_every_method_has_settings_that_it_accepts():
    table = settings.table()
    assert set(table) == set(algorithms.REGISTRY)
    for name, entries in table.items():
        taken = algorithms.get(name).hyperparameters
        for entry in entries:
            hyper = {key: value for key, value in entry.values.items() if key in taken}
            if isinstance(rate := hyper.get("gossip_rate"), str):
                hyper["gossip_rate"] = schedules.gossip_rate(rate, epoch_steps=1)
            algorithms.make(name, **hyper)


def test_every_feature_loss_has_settings_that_it_accepts():
    table = settings.table_of_losses()
    assert set(table) == set(losses.REGISTRY)
    for name, entries in table.items():
        for entry in entries:
            options = {key: value for key, value in entry.values.items() if key != "weight"}
            losses.get(name).check_options(options)
            assert entry.values["weight"] > 0
            # What a user gets who sets nothing.
            assert losses.get(name).options == options


def test_published_defaults_are_those_of_the_library():
    # The setting that CCL's authors run is what a user gets who sets nothing.
    (entry, *_) = settings.table()["qg-dsgdm-n"]
    defaults = algorithms.get("qg-dsgdm-n").hyperparameters
    assert {key: entry.values[key] for key in defaults} == defaults


@pytest.mark.parametrize(
    "entry, answer",
    [
        ({"status": "guessed", "source": "x"}, "published"),
        ({"status": "published"}, "with a source"),
        ({"status": "published", "source": "x", "betta": 1}, "betta"),
    ],
)
def test_bad_settings_are_refused(entry, answer):
    with pytest.raises(ValueError, match=answer):
        settings._setting("dsgdm-n", "bad", dict(entry))
    with pytest.raises(ValueError, match=answer):
        settings._setting_of_loss("moon", "bad", dict(entry))
