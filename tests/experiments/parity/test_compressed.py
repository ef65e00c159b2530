"""Replays of methods with compressed messages and of ARS, and what must not pass."""

import json
import pathlib

import numpy as np
import pytest

from experiments.parity import command, quadratics, traces
from tests.support.recordings import changed

FOLDER = pathlib.Path(__file__).parents[2] / "fixtures" / "compressed"
FILES = sorted(path.stem for path in FOLDER.glob("*.npz"))


def load(name):
    return traces.load(FOLDER / f"{name}.npz")


@pytest.mark.parametrize("name", FILES)
def test_recorded_runs_are_reproduced(name):
    trace = load(name)
    result = quadratics.replay(trace)
    assert result["passed"]
    # A recording in double precision is replayed in double precision.
    assert result["max_error"] < (1e-12 if trace["x"].dtype == np.float64 else 2e-5)


def test_all_recordings_are_here():
    assert len(FILES) == 22


def test_level_32_sends_numbers_as_they_are():
    qsgd = {"compressor": "QSGD per tensor, s = 2^level - 1", "quantization_level": 32}
    trace = changed(load("aketi-adag_adagossip_nocompression_a"), **qsgd)
    assert quadratics.replay(trace)["passed"]


@pytest.mark.parametrize(
    "name, change",
    [
        ("aketi-adag_adagossip_topk_a", {"adaptive_beta": 0.9}),
        ("aketi-adag_adagossip_topk_a", {"adaptive_gossip": False}),
        ("aketi-adag_adagossip_topk_a", {"compression_ratio": 0.7}),
        ("aketi-adag_adagossip_topk_a", {"parameter_split": 6}),
        ("aketi-adag_adagossip_topk_qgm_a", {"quasi_global_momentum": False}),
        ("aketi-adag_adagossip_qsgd_a", {"entries": {"uniforms": lambda u: np.roll(u, 1, axis=0)}}),
        ("aketi-adag_adagossip_qsgd_biased_a", {"quantization_biased": False}),
        ("aketi-ars_dsgdm_a", {"growth_rate": 1.5}),
        ("aketi-ars_qgm_a", {"epoch_length": 4}),
        ("epfml-choco_choco_randomk_a", {"entries": {"masks": lambda m: m[::-1]}}),
        ("epfml-choco_choco_topk_a", {"regularizer": 0.04}),
        ("epfml-choco_choco_topk_a", {"method": "CHOCO-SGD (deep-learning code)"}),
        ("liboyue-beer_beer_topk_a", {"kept_entries": 4}),
        ("mlolab-motef_choco_zerostart_a", {"method": "CHOCO-SGD (synthetic solver), top-k"}),
        ("mlolab-motef_motef_topk_a", {"momentum_lambda": 0.4}),
        ("mlolab-motef_motef_zerostart_a", {"method": "MoTEF (synthetic solver), top-k"}),
    ],
)
def test_a_changed_recording_fails(name, change):
    assert quadratics.replay(changed(load(name), **change))["max_error"] > 2e-4


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("epfml-choco_choco_qsgd_a", {"method": "DCD-PSGD, unbiased QSGD"}, "compresses the steps"),
        ("epfml-choco_choco_qsgd_a", {"method": "ECD-PSGD, unbiased QSGD"}, "extrapolated"),
        (
            "epfml-choco_dl_choco_topk_a",
            {"method": "DeepSqueeze, top-k"},
            "whole models compressed",
        ),
        ("liboyue-beer_beer_topk_a", {"compressor": '"top" as published'}, "the smallest entries"),
        ("mlolab-motef_beer_topk_a", {"compressor": "gzip"}, "'gzip' is unknown here"),
        ("epfml-choco_choco_qsgd_a", {"levels": 0}, "levels is 0; it must be at least 1"),
        ("aketi-adag_choco_topk_a", {"compression_ratio": 1.0}, "compression_ratio is 1.0"),
        ("aketi-ars_qgm_a", {"epoch_length": "3"}, "epoch_length = '3'"),
        ("aketi-ars_qgm_a", {"growth_rate": 0.0}, "the growth of ars is 0.0"),
        (
            "aketi-adag_adagossip_qsgd_a",
            {"entries": {"uniforms": lambda u: u[1:]}},
            "lacks uniforms",
        ),
        (
            "epfml-choco_choco_topk_a",
            {"entries": {"labels": lambda y: y[1:]}},
            "recording's labels",
        ),
    ],
)
def test_what_cannot_be_replayed_exits_2_with_the_reason(name, change, reason, tmp_path, capsys):
    np.savez(tmp_path / "changed.npz", **changed(load(name), **change))
    assert command.main(["parity", f"--trace={tmp_path / 'changed.npz'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line


def test_prints_the_compression_and_the_schedule(capsys):
    found = {}
    for name in ("mlolab-motef_motef_topk_a", "aketi-ars_dsgdm_a"):
        assert command.main(["parity", f"--trace={FOLDER / name}.npz"]) == 0
        found |= json.loads(capsys.readouterr().out)["variant"]
    assert found["compression"] == "topk, k = 3 of 6 entries per agent"
    assert (found["compression_start"], found["gossip_rate"]) == ("zero", "ars:0.1:1.6")


def test_what_a_method_needs_and_a_recording_lacks_is_named(tmp_path, capsys):
    trace = load("liboyue-beer_beer_topk_a")
    config = json.loads(str(trace["config"]))
    del config["kept_entries"]
    np.savez(tmp_path / "x.npz", **trace | {"config": np.array(json.dumps(config))})
    assert command.main(["parity", f"--trace={tmp_path / 'x.npz'}"]) == 2
    assert "config lacks 'kept_entries', which its method needs" in capsys.readouterr().err
