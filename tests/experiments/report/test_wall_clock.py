"""What a round costs, and how long it takes on a stated network, by hand."""

import pytest

from ccl_jax import algorithms
from experiments import digits, methods
from experiments.report import wall_clock


def test_modelled_time_by_hand():
    cost = wall_clock.Cost(flops=2e9, exchanges=3)
    link = wall_clock.Link(bandwidth_mbps=8, latency_ms=20, gflops=10)
    # 5 rounds of 0.2 s and 3 x 20 ms; 4 MB at 1 MB/s.
    assert link.seconds(cost, 5, 4e6) == pytest.approx(5 * (0.2 + 0.06) + 4)
    assert link._replace(seconds_per_step=1.0).seconds(cost, 5, 0) == pytest.approx(5 * 1.06)
    assert link._replace(seconds_per_step=0.0).seconds(cost, 5, 0) == pytest.approx(5 * 0.06)


def test_a_method_for_other_graphs_than_small_ones_is_measured_on_its_own(monkeypatch):
    def even(topology, hyperparameters):
        if topology.agents % 2:
            raise ValueError("give an even number of agents")

    monkeypatch.setattr(algorithms.base, "REGISTRY", dict(algorithms.REGISTRY))
    enter = algorithms.register("even-dsgd", summary="-", reference="-", check=(even,))
    enter(lambda: algorithms.make("dsgd"))
    config = digits.DEFAULTS.replace(agents=6)
    cost = lambda name: wall_clock.cost(config.replace(algorithm=name), 10, (8, 8, 1))
    assert cost("even-dsgd") == cost("dsgd")
    assert "not measured" in methods.table([algorithms.get("even-dsgd")])
    assert "exchanges: not measured" in methods.details(algorithms.get("even-dsgd"))


def test_cost_of_a_round():
    config = digits.DEFAULTS.replace(algorithm="dsgdm-n", agents=6, batch_size=4)
    shape = (10, (8, 8, 1))
    plain = wall_clock.cost(config, *shape)
    # The two convolutions alone: 36 of 64 positions of the first see 9 pixels ... in all (3*8-2)^2 = 484
    # and (3*4-2)^2 = 100 pairs of position and tap, for 1 x 16 and 16 x 64 channels; 2 flops each.
    convolutions = 2 * (484 * 16 + 100 * 16 * 64)
    forward = plain.flops / (3 * 4)
    assert convolutions < forward < 1.25 * convolutions
    # Two neighbours: two forward passes beside three for the gradient; L_dv has a reply.
    ccl = wall_clock.cost(config.replace(lambda_d=0.1), *shape)
    assert ccl.flops / plain.flops == pytest.approx(5 / 3)
    assert (plain.exchanges, ccl.exchanges) == (1, 2)
    assert wall_clock.cost(config.replace(lambda_m=0.1), *shape).exchanges == 1
    # Prototypes go with the models, and take no forward pass.
    assert wall_clock.cost(config.replace(feature_loss=("prototype:0.1",)), *shape) == plain
    passes = lambda changed: wall_clock.cost(changed, *shape).flops / (4 * forward)
    moon = config.replace(feature_loss=("moon:1",))
    assert passes(moon) == pytest.approx(3 + 2 + 1)
    assert passes(moon.replace(local_steps=2)) == pytest.approx(3 + 2)  # both models are its own
    assert passes(config.replace(feature_loss=("logit_distillation:1",))) == pytest.approx(3 + 2)
    assert passes(config.replace(sam_rho=0.1)) == pytest.approx(6)
    assert passes(config.replace(sam_rho=0.1, lambda_m=0.1)) == pytest.approx(6 + 2)
    assert passes(config.replace(sam_rho=0.1, algorithm="ngc")) == pytest.approx(18)
    # With local steps neighbours are heard, and shown images, in every second step only.
    rare = wall_clock.cost(config.replace(local_steps=2, lambda_d=0.1), *shape)
    assert rare.flops / plain.flops == pytest.approx(4 / 3) and rare.exchanges == 1
    assert passes(config.replace(algorithm="ngc", local_steps=2)) == pytest.approx(3 * (1 + 1))
    # All-reduce and RelaySGD do not send neighbours their models, which L_mv needs.
    exchanges = lambda **changes: wall_clock.cost(config.replace(**changes), *shape).exchanges
    assert exchanges(algorithm="all-reduce") == 1
    assert exchanges(algorithm="all-reduce", lambda_m=0.1) == 2
    assert exchanges(algorithm="all-reduce", lambda_d=0.1) == 3
    relay = {"algorithm": "relaysgd", "topology": "chain"}
    assert (exchanges(**relay), exchanges(**relay, lambda_d=0.1)) == (1, 3)
    isolated = {"algorithm": "isolated"}
    assert exchanges(**isolated) == 0
    assert exchanges(**isolated, feature_loss=("prototype:0.1",)) == 1
    # Agents mix three times; replies come once.
    assert exchanges(gossip_steps=3, lambda_d=0.1) == 4
    assert exchanges(algorithm="ngc", gossip_steps=3) == 4
    crossed = wall_clock.cost(config.replace(algorithm="ngc"), *shape)
    assert crossed.flops / plain.flops == pytest.approx(3) and crossed.exchanges == 2


def test_a_mistake_in_a_method_is_not_taken_for_a_graph_that_does_not_fit(monkeypatch):
    monkeypatch.setattr(algorithms.base, "REGISTRY", dict(algorithms.REGISTRY))
    wrong = algorithms.make("dsgd")._replace(
        communicate=lambda params, state, talk, lr: (params, state)
    )
    algorithms.register("wrong-dsgd", summary="-", reference="-")(lambda: wrong)
    with pytest.raises(ValueError, match="communicate of the method returns 2 values"):
        methods.table([algorithms.get("wrong-dsgd")])
