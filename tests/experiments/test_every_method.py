"""Every method by its name on the command line, with and without CCL, on real digits."""

import json

import pytest

from ccl_jax import algorithms
from experiments import cli, digits

WITHOUT_MOMENTUM = ["--lr=0.5"]
COMPRESSED = ["--compression=int8"]
# What each needs besides the defaults: a graph that it takes, or a rate that suits it.
NEEDS = {
    "relaysgd": ["--topology=chain"],
    "fedavg": ["--topology=star", *WITHOUT_MOMENTUM],
    "sgp": ["--topology=one-peer-exponential"],
    "d2": ["--weights=lazy", *WITHOUT_MOMENTUM],
    "dsgd": WITHOUT_MOMENTUM,
    "choco-sgd": [*WITHOUT_MOMENTUM, *COMPRESSED, "--gossip_rate=0.8"],
    "beer": [*WITHOUT_MOMENTUM, *COMPRESSED, "--gossip_rate=0.8"],
    "motef": [*WITHOUT_MOMENTUM, *COMPRESSED, "--gossip_rate=0.8"],
    "adagossip": [*COMPRESSED, "--gossip_rate=0.1"],
    "exact-diffusion": WITHOUT_MOMENTUM,
    "edm": ["--weights=lazy", *WITHOUT_MOMENTUM],
    **dict.fromkeys(
        ("ed", "nids", "led", "proxskip", "extra", "k-gt", "atc-gt", "aug-dgm"), WITHOUT_MOMENTUM
    ),
    "simplegt": ["--lr=0.3", "--epochs=30"],  # noise of gradients drives its agents apart
    "gut": WITHOUT_MOMENTUM,
    "adam": ["--lr=0.003"],
    "adamw": ["--lr=0.003"],
    "qg-adam": ["--lr=0.003"],
    "optax": ["--lr=0.003"],
    "muon": ["--lr=0.02"],
    "demuon": ["--lr=0.02"],
}
# IID data and few rounds: what is tested is that all of them learn, not how well.
LEARN = ["--alpha=100", "--epochs=10", "--batch_size=16"]
QUIET = ["--eval_every=10", "--noprogress", "--nofigures"]


@pytest.mark.slow
@pytest.mark.parametrize("lambdas", ["0", "0.05"], ids=["plain", "ccl"])
@pytest.mark.parametrize("name", sorted(algorithms.REGISTRY))
def test_it_learns_digits(tmp_path, name, lambdas):
    workdir = tmp_path / "run"
    flags = [
        f"--algorithm={name}",
        f"--lambda_m={lambdas}",
        f"--lambda_d={lambdas}",
        *LEARN,
        *QUIET,
    ]
    argv = ["digits", f"--workdir={workdir}", *flags, *NEEDS.get(name, [])]
    assert cli.run_main(digits.main, digits.DEFAULTS, digits.__doc__, argv) == 0
    summary = json.loads((workdir / "summary.json").read_text())
    # Knowing nothing gives 0.1.
    assert summary["local_accuracy_mean"] > 0.5, summary
