"""Replays: the authors' recorded runs, recursions written once more, and what must not pass."""

import json
import pathlib

import networkx as nx
import numpy as np
import pytest

from experiments.parity import command, quadratics, traces
from tests.support import recursions as rec
from tests.support.recordings import changed, check_replay, metropolis

FOLDER = pathlib.Path(__file__).parents[2] / "fixtures" / "algorithms"
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))
NOT_OFFERED = {
    "mozarturing-demuon_ns_bfloat16_a": "not in bfloat16",
    "epfl-qgm_qgm_interval_a": "renewed in every step",
    "epfl-relaysgd-simulator_qgm_a": "rescaled step",
    "epfl-relaysgd_relaysgd_grad_a": "relay models",
    "fb_osgp_a": "arrive in the step",
}


def load(name):
    return traces.load(FOLDER / f"{name}.npz")


@pytest.mark.parametrize("name", [name for name in FILES if name not in NOT_OFFERED])
def test_recorded_runs_are_reproduced(name):
    result = quadratics.replay(load(name))
    assert result["passed"]
    assert result["max_error"] < 2e-5  # the authors' own float32 differs by 1e-5


@pytest.mark.parametrize("name, reason", NOT_OFFERED.items())
def test_other_variants_are_refused_with_the_reason(name, reason, capsys):
    assert command.main(["parity", f"--trace={FOLDER / name}.npz"]) == 2
    assert reason in capsys.readouterr().err


def test_all_recordings_are_here():
    assert len(FILES) == 52


def keep_a_little_back(w):
    return (0.9 * w + 0.1 * np.eye(len(w))).astype(np.float32)


@pytest.mark.parametrize(
    "name, change",
    [
        ("aketi_dsgdm_a", {"momentum": 0.88}),
        ("takezawa_dsgdm_a", {"nesterov": True}),
        ("takezawa_mt_a", {"weight_decay": 0.0}),
        ("takezawa_mt_a", {"method": "momentum tracking with zero start"}),
        ("aketi_ngc_alpha1_a", {"alpha": 0.5}),
        ("aketi_qgm_ema_a", {"gossip_rate": 0.9}),
        ("aketi_gut_a", {"tracking_scale": 0.8}),
        ("epfl-qgm_d2_a", {"method": "D2, learning-rate-change safe"}),
        ("epfl-relaysgd_relaysgd_overlap_a", {"overlap": False}),
        ("epfl-relaysgd_relaysgd_a", {"method": "RelaySGD, divide by the received count"}),
        ("epfl-qgm_dsgt_a", {"entries": {"W": keep_a_little_back}}),
        ("official_cga_a", {"entries": {"lr": lambda lr: 1.01 * lr}}),
        ("mozarturing-demuon_ns_a", {"newton_schulz_steps": 4}),
        ("fb_sgp_a", {"entries": {"W_t": lambda w: w[::-1]}}),
    ],
)
def test_a_changed_recording_fails(name, change, tmp_path, capsys):
    np.savez(tmp_path / "changed.npz", **changed(load(name), **change))
    assert command.main(["parity", f"--trace={tmp_path / 'changed.npz'}"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_prints_one_line_and_exits_0(capsys):
    assert command.main(["parity", f"--trace={FOLDER / 'aketi_mt_a'}.npz"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line).keys() == {"method", "variant", "max_error", "passed"}


@pytest.mark.parametrize("config", [{"source": "nobody"}, {"method": "Adagrad"}, {"method": 3}])
def test_unknown_methods_exit_2(config, tmp_path):
    np.savez(tmp_path / "x.npz", **changed(load("aketi_mt_a"), **config))
    assert command.main(["parity", f"--trace={tmp_path / 'x.npz'}"]) == 2


# The same methods on other graphs and with other settings, against float64 recursions.

NGC, QG = "aparna-aketi/neighborhood_gradient_clustering", "epfml/quasi-global-momentum"
RELAY, CGA = "epfml/relaysgd", "yasesf93/CrossGradientAggregation"
GUT, TAKEZAWA = "aparna-aketi/global_update_tracking", "yukiTakezawa/MomentumTracking"
MT, FB = "aparna-aketi/Momentum_Tracking", "facebookresearch/stochastic_gradient_push"
LR = np.where(np.arange(16) < 10, 0.05, 0.005)
SLOW = np.full(16, 0.03)


def uniform(graph):
    voices = nx.to_numpy_array(graph, nodelist=sorted(graph)) + np.eye(len(graph))
    return voices / voices.sum(axis=1, keepdims=True)


RING3, RING7 = uniform(nx.cycle_graph(3)), uniform(nx.cycle_graph(7))
FULL8, CHAIN6 = uniform(nx.complete_graph(8)), metropolis(nx.path_graph(6))
BARBELL = uniform(nx.barbell_graph(3, 1))  # irregular, rows sum to 1 but columns do not
TREE = metropolis(nx.random_labeled_tree(8, seed=3))
STAR = metropolis(nx.star_graph(5))
_hears = np.eye(6) + np.roll(np.eye(6), 1, axis=0)
_hears[0, 2:5] = 1
IRREGULAR = _hears / _hears.sum(axis=0)  # directed: columns sum to 1, in-degrees differ
TWO_PEER = [sum(np.roll(np.eye(9), hop, axis=0) for hop in (0, h, 2 * h)) / 3 for h in (1, 3)]

# Offsets 1 and 4 on 8 agents: +4 and -4 are the same agent, and the code counts it twice.
CIRCULANT = sum(np.roll(np.eye(8), hop, axis=1) for hop in (0, 1, -1, 4, -4)) / 5

CASES = [
    (rec.dsgd_adapt_then_combine, QG, "DSGD, adapt then combine", BARBELL, {"weight_decay": 0.01}),
    (rec.dsgd_combine_then_adapt, CGA, "CDMSGD", CHAIN6, {"momentum": 0.7, "nesterov": True}),
    (rec.dsgd_combine_then_adapt, RELAY, "DSGDm-N, overlapped", RING3,
     {"momentum": 0.9, "nesterov": True, "overlap": True, "weight_decay": 0.01}),
    (rec.dsgd_at_the_mixed_point, NGC, "DSGDm", BARBELL,
     {"momentum": 0.8, "gossip_rate": 0.7, "weight_decay": 0.01}),
    (rec.adam, QG, "decentralized Adam", RING3, {"weight_decay": 0.05}),
    (rec.decentlam, TAKEZAWA, "DecentLaM", CHAIN6, {"momentum": 0.6, "weight_decay": 1e-3}),
    (rec.quasi_global_ema, QG, "QG-DSGDm, EMA form", BARBELL,
     {"momentum": 0.8, "ema_factor": 0.3, "weight_decay": 0.01}),
    (rec.quasi_global_ema, RELAY, "QG-DSGDm-N, EMA form", TREE,
     {"momentum": 0.8, "nesterov": True}),
    (rec.quasi_global_ema_at_the_mixed_point, NGC, "QG-DSGDm-N", BARBELL,
     {"momentum": 0.8, "nesterov": True, "gossip_rate": 0.8, "weight_decay": 0.01}),
    (rec.quasi_global_adam, QG, "QG-Adam", BARBELL, {"weight_decay": 0.05}),
    (rec.d2, QG, "D2", RING7, {"weight_decay": 0.02}),
    (rec.d2_lr_safe, QG, "D2, learning-rate-change safe", RING7, {"weight_decay": 0.02}),
    (rec.corrected, RELAY, "D2, correction form", TREE,
     {"momentum": 0.5, "nesterov": True, "weight_decay": 0.02}),
    (rec.exact_diffusion, RELAY, "exact diffusion", CHAIN6, {"weight_decay": 0.02}),
    (rec.gradient_tracking, QG, "DSGT", CHAIN6, {"momentum": 0.5, "weight_decay": 0.02}),
    (rec.update_tracking, RELAY, "gradient tracking on updates", STAR,
     {"momentum": 0.5, "nesterov": True, "weight_decay": 0.02}),
    (rec.momentum_tracking, MT, "momentum tracking", RING3, {"momentum": 0.7, "gossip_rate": 0.8}),
    (rec.momentum_tracking_global_start, TAKEZAWA, "momentum tracking", CHAIN6,
     {"momentum": 0.7, "weight_decay": 0.02}),
    (rec.gut, GUT, "GUT", RING7, {"gossip_rate": 0.5, "tracking_scale": 0.7, "nesterov": True}),
    (rec.gut, GUT, "QG-GUTm", BARBELL, {"momentum": 0.7, "tracking_scale": 0.05}),
    (rec.ngc, NGC, "NGC alpha=0.5", BARBELL,
     {"alpha": 0.5, "momentum": 0.8, "weight_decay": 0.01, "gossip_rate": 0.9}),
    (rec.ngc, NGC, "NGC, quasi-global", FULL8,
     {"alpha": 1.0, "momentum": 0.8, "nesterov": True, "quasi_global_ema": True}),
    (rec.ngc, NGC, "NGC alpha=0", CIRCULANT, {"alpha": 0.0, "momentum": 0.8}),
    (rec.ngc, NGC, "NGC alpha=1", CIRCULANT, {"alpha": 1.0, "momentum": 0.8}),
    (rec.compressed_ngc, NGC, "CompNGC alpha=0.5", BARBELL,
     {"alpha": 0.5, "momentum": 0.8, "parameter_split": 2}),
    (rec.cga, CGA, "CGA", BARBELL, {"momentum": 0.8, "nesterov": True, "parameter_split": 4}),
    (rec.cga, CGA, "CGA", FULL8, {"momentum": 0.9, "nesterov": True}),
    (rec.cga_own_at_the_mixed_point, NGC, "CGA", FULL8,
     {"momentum": 0.5, "parameter_split": 2, "weight_decay": 0.01, "gossip_rate": 0.9}),
    (rec.compressed_cga, NGC, "CompCGA", RING7, {"momentum": 0.8, "parameter_split": 2}),
    (rec.relay, RELAY, "RelaySGD (relaysum-model)", TREE,
     {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01}),
    (rec.relay_overlapped, RELAY, "RelaySGD with overlapped communication", TREE,
     {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01, "overlap": True}),
    (rec.relay_counts, "aparna-aketi/Relay_SGD", "RelaySGD, count normalisation", STAR, {}),
    (rec.push_sum, FB, "SGP", IRREGULAR, {"momentum": 0.8, "weight_decay": 0.05}),
    (rec.push_sum, FB, "SGP", TWO_PEER, {"momentum": 0.8, "nesterov": True}),
]  # fmt: skip


@pytest.mark.parametrize(
    "recursion, source, method, w, config",
    [
        # Every third; the others are marked as slow.
        pytest.param(*case, id=f"{k}-{case[0].__name__}", marks=pytest.mark.slow if k % 3 else ())
        for k, case in enumerate(CASES)
    ],
)
def test_other_graphs_and_settings(recursion, source, method, w, config):
    trackers = ("gradient_tracking", "update_tracking", "momentum_tracking", "exact_diffusion")
    lr = SLOW if recursion.__name__.startswith(trackers) else LR
    problem = rec.Problem(w, lr, seed=11, source=source, method=method, **config)
    changing = len(problem.w_t) > 1
    more = {"W_t": problem.w_t[np.arange(len(lr)) % len(problem.w_t)]} if changing else {}
    check_replay(recursion, problem, **more)
