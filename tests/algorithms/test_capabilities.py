"""Every method under settings of the network: it runs as it is published, or says why not."""

import jax
import jax.numpy as jnp
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import base, capabilities, dsgd
from ccl_jax.network import Faults, Network, compression

REFUSED = {
    "local_steps": {
        *("all-reduce", "d2", "ed", "edm", "exact-diffusion", "extra", "gut", "nids", "qg-gutm"),
        *("proxskip", "simplegt"),
    },
    "gossip_steps": {"all-reduce", "fedavg", "isolated", "relaysgd"},
    "compressor": {
        "all-reduce",
        "fedavg",
        "isolated",
        "relaysgd",
        "ngc",
        "cga",
        "simplegt",
    },
}
REFUSED["message_noise"] = {
    *("d2", "ed", "edm", "exact-diffusion", "extra", "nids", "simplegt", "led", "proxskip"),
    *("dsgt", "update-tracking", "momentum-tracking", "atc-gt", "k-gt", "aug-dgm", "beer", "motef"),
    *("demuon", "sgp", "all-reduce", "fedavg", "comp-ngc", "comp-cga"),
}
REFUSED["average_from"] = {
    *("d2", "ed", "edm", "exact-diffusion", "extra", "nids", "simplegt", "led", "proxskip"),
    *("gut", "qg-gutm", "comp-ngc", "comp-cga", "all-reduce", "fedavg", "isolated", "relaysgd"),
}
VALUES = {
    "average_from": 0,
    "message_noise": 0.1,
    "local_steps": 2,
    "gossip_steps": 2,
    "compressor": compression.make("int8"),
}


@pytest.mark.parametrize("setting", REFUSED)
def test_methods_that_a_setting_would_change_are_refused(setting):
    network = Network(graphs.make("ring", 5), **{setting: VALUES[setting]})
    refused = set()
    for name, method in algorithms.REGISTRY.items():
        try:
            capabilities.check(method, network)
        except ValueError as error:
            assert name in str(error) and ("leave" in str(error) or "take" in str(error))
            refused.add(name)
    assert refused == REFUSED[setting]


@pytest.mark.parametrize("name", ["dsgd", "relaysgd", "dsgt", "ed"])
def test_noise_grows_with_the_steps_where_adding_up_is_declared(name):
    """Every loss is |x|^2 / 2, and all start at its optimum: what they move is noise."""
    method = algorithms.get(name)
    network = Network(graphs.make("chain", 4, weights="metropolis"), message_noise=0.02)
    algorithm, x = algorithms.make(name, weight_decay=0.0), jnp.zeros((4, 64))

    def step(carry, t):
        gradient = lambda at, models: (at, jnp.mean(at**2))
        new = algorithms.advance(algorithm, *carry, network.round(t), jnp.float32(0.1), gradient)
        return (new.params, new.state), new.aux

    start = (x, algorithm.init(x, network.round(0)))
    steps = jnp.arange(800, dtype=jnp.int32)
    moved = jax.jit(lambda start: jax.lax.scan(step, start, steps)[1])(start)
    early, late = moved[50:150].mean(), moved[700:].mean()
    # A sum of t draws has t times their variance: 7.5 here; what is forgotten has the same throughout.
    assert late > 3 * early if method.capabilities.adds_up else late < 1.5 * early


def test_methods_that_need_float64_are_refused_on_tpus_only():
    refused = set()
    for name, method in algorithms.REGISTRY.items():
        capabilities.check_platform(method, "cpu")
        capabilities.check_platform(method, "gpu")
        try:
            capabilities.check_platform(method, "tpu")
        except ValueError as error:
            assert f"{name} needs float64" in str(error) and "take another method" in str(error)
            refused.add(name)
    assert refused == {"cga", "comp-cga"}


def test_nothing_is_refused_on_a_plain_network():
    for method in algorithms.REGISTRY.values():
        capabilities.check(method, Network(graphs.make("ring", 5)))


def test_compression_needs_neighbours_that_stay():
    with pytest.raises(ValueError, match="neighbours change; leave out compression"):
        Network(graphs.make("random-matching", 4), compressor=compression.make("int8"))


# Methods of others.

SETTINGS = VALUES | {"faults": Faults(drop=0.1)}
CALLED = {"compressor": "compression", "average_from": "merge_at"}


@pytest.fixture
def register(monkeypatch):
    """Enters a method into a registry of its own; returns its entry."""
    monkeypatch.setattr(base, "REGISTRY", {})

    def enter(**declared):
        how = {"summary": "a method of somebody else", "reference": "none", **declared}
        base.register("stranger", **how)(dsgd.dsgd)
        return base.get("stranger")

    return enter


@pytest.mark.parametrize("setting", SETTINGS)
def test_who_declares_nothing_is_refused_with_what_needs_a_declaration(setting, register):
    network = Network(graphs.make("ring", 5), **{setting: SETTINGS[setting]})
    with pytest.raises(ValueError) as error:
        capabilities.check(register(), network)
    assert str(error.value) == (
        f"stranger declares nothing about {CALLED.get(setting, setting)}: leave it out, or give "
        "`capabilities=` where the method is registered"
    )


def test_all_that_needs_a_declaration_is_named_at_once(register):
    every = SETTINGS | {"faults": Faults(straggle=0.1)}
    del every["average_from"]  # does not go with the others
    network = Network(graphs.make("ring", 5), **every)
    with pytest.raises(ValueError, match="compression, faults, message_noise: leave"):
        capabilities.check(register(), network)
    capabilities.check(register(capabilities=base.GOSSIP), network)


def test_who_declares_nothing_runs_on_a_plain_network(register):
    capabilities.check(register(), Network(graphs.make("ring", 5)))


@pytest.mark.parametrize(
    "declared, settings, why",
    [
        ({"rarely": False}, {"local_steps": 2}, "needs an exchange in every step"),
        ({"by_chance": True}, {"local_steps": 2}, "throws a coin.* take led"),
        ({"how": "relay"}, {"gossip_steps": 2}, "does not gossip; leave it out"),
        ({"how": "average"}, {"compressor": compression.SIGN}, "does not gossip; leave it out"),
        ({"uncompressed": "sends dates"}, {"compressor": compression.SIGN}, "sends dates, or lea"),
        ({"lossless": "counts"}, {"faults": Faults(drop=0.1)}, "counts; or take another method"),
        ({"noiseless": "whispers"}, {"message_noise": 0.1}, "whispers; leave out message_noise"),
        (
            {"lossless": "counts"},
            {"faults": Faults(straggle=0.1)},
            "its step, .* leave out straggle",
        ),
        ({"adds_up": True}, {"message_noise": 0.1}, "adds up .* leave out message_noise"),
        ({"keeps_sums": True}, {"faults": Faults(straggle=0.1)}, "sums .* leave out straggle"),
    ],
)
def test_what_is_declared_is_what_is_refused(declared, settings, why, register):
    method = register(capabilities=base.Capabilities(**declared))
    with pytest.raises(ValueError, match=f"stranger.*{why}") as error:
        capabilities.check(method, Network(graphs.make("ring", 5), **settings))
    assert "\n" not in str(error.value)
    # The other settings stand.
    for name, value in SETTINGS.items():
        if name not in settings and (name == "faults" or "how" not in declared):
            capabilities.check(method, Network(graphs.make("ring", 5), **{name: value}))


def test_a_reason_may_depend_on_the_hyper_parameters(register):
    reason = lambda hyper: "is nervous" if hyper["momentum"] > 0.5 else ""
    method = register(capabilities=base.Capabilities(lossless=reason))
    network = Network(graphs.make("ring", 5), faults=Faults(drop=0.1))
    capabilities.check(method, network, momentum=0.1)
    for hyper in ({}, {"momentum": 0.8}):  # 0.9 by default
        with pytest.raises(ValueError, match="stranger is nervous; or take another method"):
            capabilities.check(method, network, **hyper)
