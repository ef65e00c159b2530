"""Every method under settings of the network: it runs as it is published, or says why not."""

import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import capabilities
from ccl_jax.network import Network, compression

REFUSED = {
    "local_steps": {"all-reduce", "d2", "exact-diffusion", "gut", "qg-gutm"},
    "gossip_steps": {"all-reduce", "fedavg", "isolated", "relaysgd"},
    "compressor": {"all-reduce", "fedavg", "isolated", "relaysgd", "ngc", "cga"},
}
VALUES = {"local_steps": 2, "gossip_steps": 2, "compressor": compression.make("int8")}


@pytest.mark.parametrize("setting", REFUSED)
def test_methods_that_a_setting_would_change_are_refused(setting):
    network = Network(graphs.make("ring", 5), **{setting: VALUES[setting]})
    refused = set()
    for name, method in algorithms.REGISTRY.items():
        try:
            capabilities.check(method, network)
        except ValueError as error:
            assert name in str(error) and ("leave it out" in str(error) or "take" in str(error))
            refused.add(name)
    assert refused == REFUSED[setting]


def test_nothing_is_refused_on_a_plain_network():
    for method in algorithms.REGISTRY.values():
        capabilities.check(method, Network(graphs.make("ring", 5)))


def test_compression_needs_neighbours_that_stay():
    with pytest.raises(ValueError, match="neighbours change; leave out compression"):
        Network(graphs.make("random-matching", 4), compressor=compression.make("int8"))
