"""Networks that do not behave: what is kept, what is lost, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs, training
from ccl_jax.devices import parallel
from ccl_jax.network import Memory, Network
from ccl_jax.network.compression import SIGN
from ccl_jax.network.faults import Faults, parse_pair
from ccl_jax.runs.directory import RunDirectory
from tests.support import tiny_main
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch

AGENTS = 6


def simulate(network: Network, x, steps: int, use):
    """Runs `use(round, x) -> x` step by step; returns every x, traffic and conditions."""

    @jax.jit
    def step(t, memory, x):
        talk = network.round(t, memory)
        x = use(talk, x)
        return x, talk.memory(), talk.traffic(), talk.conditions

    memory, seen = network.start(lambda talk: use(talk, x)), []
    for t in range(steps):
        x, memory, traffic, conditions = step(jnp.int32(t), memory, x)
        seen.append((x, traffic, conditions))
    return seen


def mix(talk, x):
    return talk.mix(talk.send("x", x))


def mixing_matrices(network: Network, steps: int) -> list[np.ndarray]:
    """The matrices that are really mixed with: each is what mix makes of the unit vectors."""
    eye = jnp.eye(network.topology.agents)
    use = lambda talk, x: mix(talk, eye)
    return [np.asarray(x) for x, _, _ in simulate(network, eye, steps, use)]


def ring(**faults) -> Network:
    return Network(graphs.make("ring", AGENTS), faults=Faults(**faults))


def test_without_faults_the_network_is_the_plain_one():
    plain, none = Network(graphs.make("ring", AGENTS)), ring(seed=5)
    programs = [
        jax.jit(lambda t, x, n=n: (mix(n.round(t), x), n.round(t).memory())).lower(
            jnp.int32(0), jnp.ones((AGENTS, 3))
        )
        for n in (plain, none)
    ]
    assert programs[0].as_text() == programs[1].as_text()
    assert (
        none.round(0).memory()._replace(fresh=None) == Memory()
        and none.round(0).traffic().lost is None
    )


@pytest.mark.parametrize("drop, offline, seed", [(0.2, 0.0, 0), (0.7, 0.3, 1)])
def test_symmetric_losses_keep_rows_columns_and_edges(drop, offline, seed):
    topology = graphs.make("torus:2x3", AGENTS, weights="metropolis")
    faults = Faults(drop=drop, offline=offline, offline_length=3.0, seed=seed)
    for w in mixing_matrices(Network(topology, faults=faults), 20):
        np.testing.assert_allclose(w.sum(axis=0), 1, rtol=0, atol=1e-6)
        np.testing.assert_allclose(w.sum(axis=1), 1, rtol=0, atol=1e-6)
        off = ~np.eye(AGENTS, dtype=bool)
        lost = off & (w == 0)
        np.testing.assert_allclose(w[off & ~lost], topology.weights[0][off & ~lost], rtol=1e-6)


@pytest.mark.parametrize("stochastic, axis", [("row", 1), ("column", 0)])
def test_one_way_losses_keep_rows_in_averaging_and_columns_in_push_sum(stochastic, axis):
    faults = Faults(drop=0.5, one_way=True, seed=11)
    topology = graphs.make("exponential", AGENTS, stochastic=stochastic)
    others = []
    for w in mixing_matrices(Network(topology, faults=faults), 20):
        np.testing.assert_allclose(w.sum(axis=axis), 1, rtol=0, atol=1e-6)
        others.append(np.abs(w.sum(axis=1 - axis) - 1).max())
    assert max(others) > 0.1


def test_links_fail_as_often_and_as_long_as_asked():
    burst = 4.0
    network = ring(drop=0.3, drop_burst=burst, offline=0.2, offline_length=10.0, seed=1)
    draw = jax.jit(lambda t, m: network.faults.draw(t, t == 0, jnp.arange(AGENTS), AGENTS, m))
    memory, bad, away = network.faults.start(AGENTS, AGENTS), [], []
    for t in range(4000):
        _, memory = draw(jnp.int32(t), memory)
        bad.append(np.asarray(memory.deaf)[np.triu_indices(AGENTS, 1)])
        away.append(np.asarray(memory.offline)[0])
    for states, share, length in ((np.array(bad), 0.3, burst), (np.array(away), 0.2, 10.0)):
        assert states.mean() == pytest.approx(share, rel=0.15)
        ends = (states[:-1] & ~states[1:]).sum()
        assert states.sum() / ends == pytest.approx(length, rel=0.15)


def test_independent_losses_are_independent_of_the_step_before():
    network = ring(drop=0.3, seed=2)
    lost = np.array([w[0, 1] == 0 for w in mixing_matrices(network, 1500)])
    assert lost.mean() == pytest.approx(0.3, abs=0.04)
    assert lost[1:][lost[:-1]].mean() == pytest.approx(0.3, abs=0.06)


def test_lost_messages_were_sent_and_offline_agents_send_nothing():
    seen = simulate(ring(drop=0.4, offline=0.3, seed=3), jnp.ones((AGENTS, 5)), 40, mix)
    for _, traffic, conditions in seen:
        online = np.asarray(conditions.online)
        np.testing.assert_array_equal(traffic.bytes_sent(), np.where(online, 2 * 20, 0))
        arrived = (np.asarray(traffic.messages) - np.asarray(traffic.lost)).sum()
        hears = np.asarray(conditions.hears)
        assert arrived == sum(hears[i, (i + s) % AGENTS] for i in range(AGENTS) for s in (1, -1))


def test_gather_reply_and_cross_are_zero_where_messages_are_lost():
    network = ring(drop=0.5, one_way=True, seed=4)
    x = jnp.arange(1.0, AGENTS + 1)

    def use(talk, _):
        back = talk.reply("ones", jnp.ones((AGENTS, 2)))
        sent = talk.send("x", x)
        return talk.gather(sent), talk.cross(lambda m, d: m * d, sent, x), back, talk.mask

    for (heard, crossed, back, mask), _, conditions in simulate(network, 0, 8, use):
        hears = np.asarray(conditions.hears)
        for i in range(AGENTS):
            peers = sorted([(i - 1) % AGENTS, (i + 1) % AGENTS])
            there = np.array([hears[i, j] for j in peers])
            np.testing.assert_array_equal(mask[i], there)
            np.testing.assert_array_equal(heard[i], there * (np.array(peers) + 1))
            np.testing.assert_array_equal(crossed[i], there * (np.array(peers) + 1) * (i + 1))
            # A reply comes back where the message went out, and the reply came through.
            both = [hears[j, i] and hears[i, j] for j in peers]
            np.testing.assert_array_equal(back[i], np.array(both, float))


def test_stragglers_send_what_they_had():
    network = ring(straggle=1.0, delay=2)
    # Agent i holds 100 t + i in step t; neighbours weigh 1/3 each.
    values = [np.arange(AGENTS) + 100.0 * t for t in range(6)]
    memory = Memory()
    for t in range(6):
        talk = network.round(t, memory)
        mixed = mix(talk, jnp.asarray(values[t], jnp.float32))
        memory = talk.memory()
        old = values[max(0, t - 2)]
        expected = (values[t] + np.roll(old, 1) + np.roll(old, -1)) / 3
        np.testing.assert_allclose(mixed, expected, rtol=1e-5)


def test_a_resumed_run_has_the_faults_of_the_whole_one():
    network = ring(drop=0.3, drop_burst=5.0, straggle=0.3, delay=2, seed=6)

    @jax.jit
    def step(t, memory, x):
        talk = network.round(t, memory)
        return mix(talk, x) + t.astype(x.dtype), talk.memory()

    start = jax.random.normal(jax.random.key(0), (AGENTS, 4))
    states = [(start, network.start(lambda talk: mix(talk, start)))]
    for t in range(6):
        states.append(step(jnp.int32(t), states[-1][1], states[-1][0]))
    x, memory = jax.tree.map(lambda leaf: jnp.asarray(np.array(leaf)), states[3])
    for t in range(3, 6):
        x, memory = step(jnp.int32(t), memory, x)
    jax.tree.map(np.testing.assert_array_equal, (x, memory), states[6])
    # Forgetting the chains would have shown.
    x, memory = states[3][0], jax.tree.map(jnp.zeros_like, states[3][1])
    for t in range(3, 6):
        x, memory = step(jnp.int32(t), memory, x)
    assert not np.array_equal(x, states[6][0])


class Quadratics:
    """f_i(x) = |x - c_i|^2 / 2: the best model is the mean of the c_i."""

    def __init__(self, network: Network, name: str, lr: float, **hyper) -> None:
        self.centres = jax.random.normal(jax.random.key(1), (AGENTS, 3))
        algorithm = algorithms.make(name, weight_decay=0.0, **hyper)

        @jax.jit
        def step(t, x, state, memory, lr):
            talk = network.round(t, memory)
            own = lambda at, _: (at - self.centres, None)
            new = algorithms.advance(algorithm, x, state, talk, lr, own)
            return new.params, new.state, talk.memory()

        x = jnp.zeros((AGENTS, 3))
        state = algorithm.init(x, network.round(0))
        memory = network.start(lambda talk: algorithm.communicate(x, state, talk, lr))
        for t in range(600):
            rate = jnp.float32(lr / (1 + t / 20))
            x, state, memory = step(jnp.int32(t), x, state, memory, rate)
        self.models, self.state = np.asarray(algorithm.models(x, state)), state

    @property
    def error(self) -> float:
        return float(np.abs(self.models - np.asarray(self.centres.mean(axis=0))).max())


def test_who_is_offline_does_not_train():
    network = ring(offline=0.5, offline_length=2.0, seed=12)
    algorithm = algorithms.make("qg-dsgdm-n")
    objective = training.Objective(CLASSES, 0.1, 0.1)
    step = jax.jit(training.make_step(TinyModel(), algorithm, network, objective, lambda t: 0.1))
    state = training.init_state(
        TinyModel(), algorithm, network, objective, IMAGE, jax.random.key(0)
    )
    away = 0
    for t in range(6):
        new, metrics = step(state, batch(AGENTS, seed=t))
        # The chain's memory has who was offline in this step.
        offline = np.asarray(new.memory.faults.offline)[0]
        for x, y in zip(jax.tree.leaves((state.params, state.algorithm.momentum)),
                        jax.tree.leaves((new.params, new.algorithm.momentum)), strict=True):  # fmt: skip
            changed = np.abs(np.asarray(x) - np.asarray(y)).reshape(AGENTS, -1).max(axis=1) > 0
            np.testing.assert_array_equal(changed, ~offline)
        np.testing.assert_array_equal(metrics.samples, np.where(offline, 0, 5))
        np.testing.assert_array_equal(metrics.online, ~offline)
        away += offline.sum()
        state = new
    assert 0 < away < 6 * AGENTS


@pytest.mark.slow
@pytest.mark.parametrize("form", parallel.FORMS)
def test_faults_do_not_depend_on_the_number_of_devices(form):
    faults = Faults(
        drop=0.3, drop_burst=2.0, offline=0.2, offline_length=2.0, straggle=0.3, seed=13
    )
    algorithm, ends = algorithms.make("qg-dsgdm-n"), []
    for devices in (1, 3):
        network = Network(graphs.make("ring", AGENTS), faults=faults, devices=devices)
        plan = parallel.Plan(devices, form)
        objective = training.Objective(CLASSES, 0.1, 0.1)
        step = training.make_step(TinyModel(), algorithm, network, objective, lambda t: 0.1)
        step = jax.jit(plan.wrap(step))
        state = training.init_state(
            TinyModel(), algorithm, network, objective, IMAGE, jax.random.key(0)
        )
        for t in range(4):
            state, metrics = step(plan.put(state), plan.put(batch(AGENTS, seed=t)))
        ends.append(jax.device_get((state.params, state.memory.faults, metrics.traffic)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)


def test_dsgd_converges_at_thirty_percent_loss():
    network = ring(drop=0.3, seed=7)
    assert Quadratics(network, "dsgd", 0.2).error < 0.05


def test_push_sum_is_unbiased_under_one_way_losses():
    topology = graphs.make("exponential", AGENTS, stochastic="column")
    faults = Faults(drop=0.3, one_way=True, seed=8)
    run = Quadratics(Network(topology, faults=faults), "sgp", 0.2, momentum=0.0)
    assert run.error < 0.06
    # No mass is lost, although weights are far from 1 each.
    assert float(run.state.weight.sum()) == pytest.approx(AGENTS, rel=1e-4)
    assert float(np.abs(run.state.weight - 1).max()) > 0.05


def test_trackers_keep_the_sum_of_gradients_under_symmetric_losses():
    run = Quadratics(ring(drop=0.3, seed=9), "dsgt", 0.2, momentum=0.0)
    tracked, gradients = (np.asarray(t).sum(0) for t in (run.state.tracker, run.state.gradient))
    np.testing.assert_allclose(tracked, gradients, atol=1e-4)
    assert run.error < 0.05


def test_relay_counts_drop_with_the_messages():
    network = Network(graphs.make("chain", AGENTS), faults=Faults(drop=0.3, seed=10))
    run = Quadratics(network, "relaysgd", 0.2, momentum=0.0, fill="counts")
    assert run.error < 0.2
    counts = 1 + np.asarray(run.state.counts).sum(axis=1)
    assert counts.max() <= AGENTS


def test_a_relayed_message_that_is_lost_was_sent():
    """It answers nothing: what an agent has not heard does not keep it from sending."""
    chain, algorithm = graphs.make("chain", AGENTS), algorithms.make("relaysgd", fill="counts")
    network = Network(chain, faults=Faults(drop=0.4, offline=0.2, seed=5))
    x = jnp.ones((AGENTS, 5))
    state = algorithm.init(x, network.round(0))
    say = lambda talk, _: algorithm.communicate(x, state, talk, 0.1)
    neighbors, lost = chain.mask[0].sum(axis=1), 0
    for _, traffic, conditions in simulate(network, 0, 20, say):
        online = np.asarray(conditions.online)
        # The sums of 5 numbers, and a count.
        np.testing.assert_array_equal(traffic.bytes_sent(), np.where(online, neighbors * 24, 0))
        arrived = (np.asarray(traffic.messages) - np.asarray(traffic.lost)).sum()
        hears = np.asarray(conditions.hears)
        assert arrived == np.diagonal(hears, 1).sum() + np.diagonal(hears, -1).sum()
        lost += np.asarray(traffic.lost).sum()
    assert lost > 50


def allowed(name: str, faults: Faults, graph="ring", **hyper) -> bool:
    method = algorithms.get(name)
    topology = graphs.make(graph, AGENTS, stochastic=method.stochastic)
    try:
        algorithms.capabilities.check(method, Network(topology, faults=faults), **hyper)
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error)
        return False
    return True


def test_methods_whose_sums_would_break_are_refused():
    drop, one_way = Faults(drop=0.1), Faults(drop=0.1, one_way=True)
    late = Faults(straggle=0.1)
    for name in ("dsgdm-n", "qg-dsgdm-n", "qg-adam", "isolated"):
        assert all(allowed(name, f) for f in (drop, one_way, late))
    for name in ("dsgt", "decentlam", "momentum-tracking", "k-gt", "atc-gt", "aug-dgm"):
        assert [allowed(name, f) for f in (drop, one_way, late)] == [True, False, False]
    corrected = (
        "d2",
        "exact-diffusion",
        "ed",
        "edm",
        "nids",
        "led",
        "proxskip",
        "extra",
        "simplegt",
    )
    for name in (*corrected, "gut", "all-reduce", "fedavg"):
        assert not allowed(name, drop)
        assert allowed(name, Faults())
    assert allowed("sgp", one_way) and not allowed("sgp", late)
    assert not allowed("momentum-tracking", drop, start="global")
    assert not allowed("relaysgd", drop, "chain")
    assert allowed("relaysgd", drop, "chain", fill="counts")
    assert allowed("cga", drop) and not allowed("cga", one_way)
    with pytest.raises(ValueError, match="compression"):
        Network(graphs.make("ring", AGENTS), compressor=SIGN, faults=drop)


@pytest.mark.parametrize(
    "bad",
    [{"drop": 1.0}, {"drop": -0.1}, {"drop": 0.8, "drop_burst": 2.0}, {"drop_burst": 0.5},
     {"offline": 1.0}, {"offline": float("nan")}, {"offline": 0.9, "offline_length": 1.0},
     {"straggle": 1.1}, {"straggle": 0.1, "delay": 0}],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"is .*; it must be"):
        Faults(**bad)


def test_pairs_are_read():
    assert parse_pair("offline", "0.1:20") == (0.1, 20.0)
    assert parse_pair("offline", None) == (0.0, 1.0)
    for bad in ("", "0.1", "a:b", "0.1:", "1:2:3", "inf:1", "0.1:nan"):
        with pytest.raises(ValueError, match="two numbers"):
            parse_pair("offline", bad)


@pytest.mark.slow
def test_flags_are_shown_and_what_they_do_is_in_the_metrics(tmp_path, capsys):
    assert tiny_main.main(["x", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("drop", "drop_burst", "drop_one_way", "offline", "straggle"):
        assert f"  --{name} " in shown
    flags = [
        "--drop=0.3",
        "--drop_burst=5",
        "--drop_one_way",
        "--offline=0.4:3",
        "--straggle=0.2:3",
    ]
    flags += ["--algorithm=qg-dsgdm-n", "--epochs=1", "--eval_every=1", "--seed=5"]
    assert tiny_main.main(["x", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    (row,) = RunDirectory(tmp_path / "run").read_metrics()

    # Three agents in a ring: all are neighbours, and who is online sends two messages.
    faults = Faults(
        drop=0.3, drop_burst=5, one_way=True, offline=0.4, offline_length=3, straggle=0.2, seed=5
    )
    draw = jax.jit(lambda t, memory: faults.draw(t, jnp.arange(3), 3, memory))
    memory, online, arrived = faults.start(3, 3), [], 0
    for t in range(row["step"]):
        conditions, memory = draw(jnp.int32(t), memory)
        online.append(int(conditions.online.sum()))
        arrived += int(np.asarray(conditions.hears)[~np.eye(3, dtype=bool)].sum())
    assert row["step"] == 15 and 0 < sum(online) < 45
    assert row["agents_online"] == pytest.approx(sum(online) / 15)
    assert row["messages_lost"] == pytest.approx(1 - arrived / (2 * sum(online)))
