"""Replays of decent-bench's methods: recorded runs, other graphs and settings, what must not pass."""

import pathlib

import networkx as nx
import numpy as np
import pytest

from experiments.parity import command, quadratics, traces
from tests.support import corrections as rec
from tests.support.recordings import changed, check_replay, metropolis
from tests.support.recursions import Problem

FOLDER = pathlib.Path(__file__).parents[2] / "fixtures" / "methods_2026"
FILES = sorted(path.stem for path in FOLDER.glob("decentbench_*.npz"))
SOURCE = "team-decent/decent-bench"


def load(name):
    return traces.load(FOLDER / f"{name}.npz")


@pytest.mark.parametrize("name", FILES)
def test_recorded_runs_are_reproduced(name):
    result = quadratics.replay(load(name))
    assert result["passed"]
    assert result["max_error"] < 1e-5  # float32 against float64


def test_all_recordings_are_here():
    assert len(FILES) == 11


def test_coins_may_be_truth_values_and_settings_bytes():
    trace = changed(load("decentbench_proxskip_a"), {"communicate": lambda coins: coins != 0})
    assert quadratics.replay(trace)["passed"]
    assert quadratics.replay(trace | {"config": np.array(str(trace["config"]).encode())})["passed"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("kgt_k5", {"local_steps": 4}),
        ("kgt_k1", {"server_step_size": 1.0}),
        ("led_k5", {"dual_step_size": 0.12}),
        ("led_k1", {"method": "exact diffusion"}),
        ("proxskip", {"chi": 2.0}),
        ("proxskip", {"entries": {"communicate": np.ones_like}}),
        ("nids", {"method": "exact diffusion"}),
        ("ed", {"method": "NIDS"}),
        ("extra", {"method": "Simple gradient tracking"}),
        ("augdgm", {"method": "ATC-Tracking"}),
        ("atctracking", {"weight_decay": 0.01}),
        ("simplegt", {"entries": {"lr": lambda lr: 1.01 * lr}}),
    ],
)
def test_a_changed_recording_fails(name, change):
    assert not quadratics.replay(changed(load(f"decentbench_{name}_a"), **change))["passed"]


@pytest.mark.parametrize(
    "name, change, answer",
    [
        ("kgt_k5", {"local_steps": 0}, "local_steps = 0; it must be at least 1"),
        ("kgt_k5", {"local_steps": 2.5}, "local_steps = 2.5"),
        ("led_k1", {"momentum": 0.9}, "has momentum 0.9, and led has none"),
        ("proxskip", {"chi": 0}, "chi = 0; it must be positive"),
        ("proxskip", {"method": "ProxSkip-VR"}, None),
        ("ed", {"method": "ADMM"}, "it is unknown here"),
    ],
)
def test_what_cannot_be_replayed_exits_2(name, change, answer, tmp_path, capsys):
    trace = changed(load(f"decentbench_{name}_a"), **change)
    if answer is None:
        del trace["communicate"]
        answer = "lacks communicate"
    np.savez(tmp_path / "x.npz", **trace)
    assert command.main(["parity", f"--trace={tmp_path / 'x.npz'}"]) == 2
    assert answer in capsys.readouterr().err


# The same methods on other graphs and with other settings, against float64 recursions.

RING7, STAR = metropolis(nx.cycle_graph(7)), metropolis(nx.star_graph(5))
TREE, BARBELL = metropolis(nx.random_labeled_tree(8, seed=3)), metropolis(nx.barbell_graph(3, 1))
COINS = [1, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 1, 0, 1]
DECAY = {"weight_decay": 0.02}

CASES = [
    (rec.k_gt, "K-GT, 4 local steps", TREE, {"local_steps": 4, "server_step_size": 0.6} | DECAY),
    (rec.k_gt, "K-GT, 3 local steps", RING7, {"local_steps": 3, "server_step_size": 1}),
    (rec.led, "LED, 4 local steps", BARBELL, {"local_steps": 4, "dual_step_size": 0.15} | DECAY),
    (rec.led, "LED, 1 local steps", STAR, {"local_steps": 1, "dual_step_size": 0.7}),
    (rec.proxskip, "ProxSkip", STAR,
     {"communicate": COINS, "communication_probability": 0.4, "dual_step_size": 0.3, "chi": 1.5}),
    (rec.proxskip, "ProxSkip", RING7,
     {"communicate": COINS[::-1], "communication_probability": 0.7, "dual_step_size": 0.7,
      "chi": 1.0} | DECAY),
    (rec.exact_diffusion, "exact diffusion", BARBELL, DECAY),
    (rec.nids, "NIDS", TREE, DECAY),
    (rec.extra, "EXTRA", STAR, DECAY),
    (rec.simple_tracking, "Simple gradient tracking", BARBELL, DECAY),
    (rec.aug_dgm, "AugDGM (ATC-DIGing)", TREE, DECAY),
    (rec.atc_tracking, "ATC-Tracking (NEXT/SONATA form)", STAR, DECAY),
]  # fmt: skip


@pytest.mark.parametrize(
    "recursion, method, w, config",
    [pytest.param(*case, id=f"{k}-{case[0].__name__}") for k, case in enumerate(CASES)],
)
def test_other_graphs_and_settings(recursion, method, w, config):
    problem = Problem(w, np.full(16, 0.05), seed=5, source=SOURCE, method=method, **config)
    coins = {"communicate": np.array(config["communicate"])} if "communicate" in config else {}
    check_replay(recursion, problem, **coins)
