"""The training step against a slow plain reference, and the identities of the method."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccl_jax import algorithms, graphs, training, trees
from ccl_jax.algorithms import base
from ccl_jax.graphs import topology
from ccl_jax.network import Network, compression
from ccl_jax.network.faults import Faults
from ccl_jax.training import Objective
from tests.support.tiny import CLASSES, IMAGE, TinyModel, batch, spread

MODEL = TinyModel()
LR, BETA, DECAY = 0.1, 0.9, 1e-2


def build(agents, objective, name="qg-dsgdm-n", graph=None, lr=LR, **hyper):
    """A jitted step and a state in which agents already differ."""
    hyper = {"weight_decay": DECAY} | hyper
    algorithm = algorithms.make(name, **hyper)
    graph = graph if graph is not None else graphs.make("ring", agents)
    network = Network(graph)
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: lr)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    return jax.jit(step), state._replace(params=spread(state.params))


def close(a, b, **tolerance):
    tolerance = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def agent(tree, i):
    return jax.tree.map(lambda x: x[i], tree)


@jax.jit
def apply(p, x):
    return MODEL.apply({"params": p}, x)


@jax.jit
@functools.partial(jax.grad, has_aux=True)
def reference_gradient(p, x, y, z, target, lambda_m, lambda_d):
    features, logits = apply(p, x)
    log_p = logits - jax.nn.logsumexp(logits, axis=1, keepdims=True)
    ce = -jnp.stack([log_p[b, y[b]] for b in range(len(y))]).mean()
    mv = sum(((features - zj) ** 2).mean() for zj in z)
    dv = ((features - target) ** 2).mean()
    return ce + lambda_m * mv + lambda_d * dv, (ce, mv, dv)


def reference_step(params, momentum, batch, table, lambda_m, lambda_d):
    """One CCL + QG-DSGDm-N step as MATHS.md writes it: loops over agents, neighbours, samples."""
    agents = len(table)
    params, momentum, (images, labels, mask) = jax.tree.map(np.asarray, (params, momentum, batch))
    add = lambda a, x, y: jax.tree.map(lambda u, v: np.float32(a) * u + v, x, y)
    new_params, new_momentum, losses = [], [], []
    for i in range(agents):
        own, n_i = agent(params, i), len(table[i])
        r = jax.tree.map(np.zeros_like, own)
        for j in table[i]:
            r = add(1 / (n_i + 1), add(-1.0, own, agent(params, j)), r)
        mixed = add(1.0, r, own)
        m = add(-1 / LR, r, agent(momentum, i))

        real = np.flatnonzero(mask[i])
        x, y = images[i][real], labels[i][real]
        z = [apply(agent(params, j), x)[0] for j in table[i]]
        sums, counts = np.zeros((CLASSES, 6), np.float32), np.zeros(CLASSES, np.float32)
        for j in table[i]:  # my pre-mix model on j's data
            for b in np.flatnonzero(mask[j]):
                sums[labels[j, b]] += np.asarray(apply(own, images[j, b][None])[0][0])
                counts[labels[j, b]] += 1
        for b, feature in enumerate(np.asarray(apply(mixed, x)[0])):
            sums[y[b]] += feature
            counts[y[b]] += 1
        target = np.stack([sums[c] / counts[c] for c in y])

        g, triple = reference_gradient(mixed, x, y, z, target, lambda_m, lambda_d)
        g = add(DECAY, mixed, g)
        m = add(BETA, m, g)
        new_params.append(add(-LR, add(BETA, m, g), mixed))
        new_momentum.append(m)
        losses.append(triple)
    stack = lambda trees: jax.tree.map(lambda *x: np.stack(x), *trees)
    return stack(new_params), stack(new_momentum), np.array(losses).T


@pytest.mark.parametrize(
    "lambda_m, lambda_d",
    [(0.3, 0.2)]
    + [pytest.param(*pair, marks=pytest.mark.slow) for pair in ((0.5, 0.0), (0.0, 0.7))],
)
def test_step_equals_the_slow_reference(lambda_m, lambda_d):
    table = [[1, 3], [0, 2], [1, 3], [2, 0]]
    step, state = build(4, Objective(CLASSES, lambda_m, lambda_d, measure=True))
    params, momentum = state.params, jax.tree.map(jnp.zeros_like, state.params)
    for t in range(3):
        data = batch(4, seed=t, padded=2)
        state, metrics = step(state, data)
        params, momentum, losses = reference_step(params, momentum, data, table, lambda_m, lambda_d)
        both = (metrics.losses["model_variant"], metrics.losses["data_variant"])
        ours = np.stack([metrics.cross_entropy, *both])
        np.testing.assert_allclose(ours, losses, rtol=1e-5, atol=1e-6)
        close(state.params, params)
        close(state.algorithm.momentum, momentum, atol=1e-5)


def test_lambda_zero_is_the_base_method_bit_for_bit_and_computes_nothing_more():
    base_step, state = build(4, Objective(CLASSES))
    measured_step, measured = build(4, Objective(CLASSES, measure=True))
    plain = base_step.lower(state, batch(4)).as_text()
    for name in ("mse", "cosine"):
        other, _ = build(4, Objective(CLASSES, 0.0, 0.0, name))
        assert other.lower(state, batch(4)).as_text() == plain
    for t in range(3):
        state, metrics = base_step(state, batch(4, seed=t))
        measured, _ = measured_step(measured, batch(4, seed=t))
    assert metrics.losses == {}
    close(state.params, measured.params, rtol=1e-6)


@pytest.mark.parametrize("done, part", [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
def test_both_weights_rise_linearly(done, part):
    rising, state = build(4, Objective(CLASSES, 0.2, 0.4, lambda_warmup_steps=4))
    fixed, _ = build(4, Objective(CLASSES, 0.2 * part, 0.4 * part))
    state = state._replace(step=jnp.int32(done))
    close(rising(state, batch(4))[0].params, fixed(state, batch(4))[0].params)


def test_equal_agents_and_equal_batches_have_no_model_variant_loss():
    step, state = build(4, Objective(CLASSES, 0.1, 0.1))
    state = state._replace(params=trees.stack(agent(state.params, 0), 4))
    data = jax.tree.map(lambda x: jnp.stack([x[0]] * 4), batch(4))
    _, metrics = step(state, data)
    np.testing.assert_allclose(metrics.losses["model_variant"], np.zeros(4), atol=1e-12)


def test_one_agent_is_centralized_sgd():
    alone = graphs.make("ring", 1)
    step, state = build(1, Objective(CLASSES), name="dsgdm-n", graph=alone)
    optimizer = optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(LR, BETA, nesterov=True))
    params = agent(state.params, 0)
    memory = optimizer.init(params)
    for t in range(4):
        data = batch(1, seed=t)
        state, _ = step(state, data)

        def loss(p, data=data):
            logits = MODEL.apply({"params": p}, data.images[0])[1]
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, data.labels[0]
            ).mean()

        updates, memory = optimizer.update(jax.grad(loss)(params), memory, params)
        params = optax.apply_updates(params, updates)
    close(agent(state.params, 0), params)


def test_full_graph_makes_all_agents_equal_after_every_mix():
    talk = Network(graphs.make("full", 5)).round(0)
    _, state = build(5, Objective(CLASSES))
    mixed = talk.mix(talk.send("params", state.params))
    close(mixed, trees.stack(agent(mixed, 0), 5))


def test_permuting_agents_permutes_results():
    order = np.array([2, 0, 4, 1, 3])
    ring = graphs.make("ring", 5)
    relabeled = topology.from_matrix("ring", ring.weights[0][np.ix_(order, order)])
    objective = Objective(CLASSES, 0.2, 0.3)
    step, state = build(5, objective, graph=ring)
    other_step, _ = build(5, objective, graph=relabeled)
    shuffled = state._replace(params=agent(state.params, order))
    for t in range(3):
        data = batch(5, seed=t)
        state, metrics = step(state, data)
        shuffled, other = other_step(shuffled, agent(data, order))
    close(shuffled.params, agent(state.params, order))
    close(other.losses["data_variant"], metrics.losses["data_variant"][order])


def test_the_mean_is_kept_by_a_doubly_stochastic_mix():
    _, state = build(6, Objective(CLASSES))
    talk = Network(graphs.make("ring", 6)).round(0)
    mixed = talk.mix(talk.send("params", state.params))
    mean = lambda tree: jax.tree.map(lambda x: x.mean(axis=0), tree)
    close(mean(mixed), mean(state.params))


def test_clipping_bounds_each_agents_gradient():
    _, state = build(3, Objective(CLASSES))
    norms = jax.vmap(optax.tree.norm)(state.params)
    largest = float(norms[1])
    taken = algorithms.Algorithm(None, None, lambda grads, *others: (grads, ()))
    clipped, _ = base.clip(taken, largest).update(state.params, None, (), None, None)
    np.testing.assert_allclose(
        jax.vmap(optax.tree.norm)(clipped), np.minimum(norms, largest), rtol=1e-5
    )
    close(agent(clipped, 1), agent(state.params, 1), rtol=1e-6)


def test_ccl_adds_only_class_sums_and_counts_to_the_traffic():
    size = 9 * 6 + 6 + 6 * CLASSES + CLASSES
    for lambdas, extra in (((0, 0), 0), ((0.1, 0), 0), ((0, 0.1), 7 * CLASSES), ((1, 1), 28)):
        step, state = build(4, Objective(CLASSES, *lambdas))
        _, metrics = step(state, batch(4))
        expected = 2 * 4 * (size + extra)
        np.testing.assert_array_equal(metrics.traffic.bytes_sent(), [expected] * 4)


def test_one_compilation_a_run_with_a_changing_rate_and_padding():
    traces = 0

    def schedule(t):
        nonlocal traces
        traces += 1
        return jnp.where(t > 2, 0.01, 0.1)

    algorithm = algorithms.make("qg-dsgdm-n")
    network = Network(graphs.make("ring", 4))
    objective = Objective(CLASSES, 0.1, 0.1)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    step = jax.jit(
        training.make_step(MODEL, algorithm, network, objective, schedule), donate_argnums=0
    )
    for t in range(4):
        state, _ = step(state, batch(4, seed=t, padded=t))
    assert traces == 1


def everything(state):
    """All of a state but its key and the number of steps, to be compared."""
    return state._replace(key=(), step=())


@pytest.fixture(scope="module")
def skipping():
    """A step that may not be taken, the plain one, and a state with memory of every kind."""
    objective = Objective(CLASSES, 0.1, 0.1, feature_losses=(("prototype", 0.1),))
    algorithm = algorithms.make("qg-dsgdm-n")
    network = Network(graphs.make("ring", 4), compressor=compression.SIGN)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    plain = training.make_step(MODEL, algorithm, network, objective, lambda t: LR)
    state, _ = jax.jit(plain)(state, batch(4))
    return jax.jit(training.skip_non_finite(plain)), jax.jit(plain), state


def test_a_healthy_step_is_taken_as_it_is(skipping):
    step, plain, state = skipping
    (new, metrics), (expected, plain_metrics) = step(state, batch(4, 1)), plain(state, batch(4, 1))
    assert metrics.taken.tolist() == plain_metrics.taken.tolist() == [True] * 4
    close((everything(new), metrics), (everything(expected), plain_metrics), rtol=1e-6)


@pytest.mark.parametrize("spoilt", ["images", "params"])
def test_a_step_with_a_number_that_is_not_finite_is_not_taken(skipping, spoilt):
    """Its metrics say so for all agents. What was sent was sent, and the next step goes on."""
    step, _, state = skipping
    data = batch(4, seed=1)
    if spoilt == "images":
        data = data._replace(images=data.images.at[2, 0, 0, 0, 0].set(jnp.nan))
    else:
        state = state._replace(params=jax.tree.map(lambda x: x.at[3].set(jnp.inf), state.params))
    new, metrics = step(state, data)
    same(everything(new), everything(state))
    same(jax.random.key_data(new.key), jax.random.key_data(state.key))
    assert (int(state.step), int(new.step)) == (1, 2)
    assert metrics.taken.tolist() == [False] * 4
    # A sign a number and one scale for each of four leaves, C F + C numbers twice: as in any step.
    _, healthy = step(state, batch(4))
    same(metrics.traffic, healthy.traffic)


def test_a_step_whose_update_overflows_is_not_taken_either():
    """Loss and gradient are numbers yet; a rate of 3e38 makes parameters of more than float32 has."""
    plain, state = build(3, Objective(CLASSES), lr=3e38, weight_decay=20.0)
    new, metrics = plain(state, batch(3))
    assert np.isfinite(metrics.cross_entropy).all() and np.isfinite(metrics.gradient_norm).all()
    assert not all(np.isfinite(x).all() for x in jax.tree.leaves(new.params))
    new, metrics = jax.jit(training.skip_non_finite(plain))(state, batch(3))
    same(new.params, state.params)
    assert not metrics.taken.any()


@pytest.mark.parametrize(
    "settings", [{"faults": Faults(straggle=0.5)}, {"compressor": compression.SIGN}]
)
def test_after_a_first_step_that_was_skipped_everyone_still_knows_the_start(settings):
    """At learning rate 0 nothing may move, whatever is sent late or compressed."""
    algorithm, objective = algorithms.make("dsgd", weight_decay=0.0), Objective(CLASSES)
    network = Network(graphs.make("ring", 5), **settings)
    step = training.make_step(MODEL, algorithm, network, objective, lambda t: 0.0)
    start = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    step = jax.jit(training.skip_non_finite(step))
    good = batch(5)
    bad = good._replace(images=good.images.at[0, 0, 0, 0, 0].set(jnp.nan))
    state, metrics = step(start, bad)
    assert not metrics.taken.any()
    for _ in range(3):
        state, metrics = step(state, good)
        assert metrics.taken.all()
    close(state.params, start.params, rtol=0, atol=1e-6)


def test_who_is_offline_keeps_everything_and_has_seen_nothing():
    objective = Objective(CLASSES, 0.1, feature_losses=(("prototype", 0.1),))
    algorithm, faults = algorithms.make("qg-dsgdm-n"), Faults(offline=0.5, offline_length=2, seed=3)
    network = Network(graphs.make("ring", 4), faults=faults)
    state = training.init_state(MODEL, algorithm, network, objective, IMAGE, jax.random.key(0))
    step = jax.jit(training.make_step(MODEL, algorithm, network, objective, lambda t: LR))
    seen = set()
    for t in range(6):
        new, metrics = step(state, batch(4, seed=t))
        own = lambda s: (s.params, s.algorithm.momentum, s.kept)
        for i, online in enumerate(metrics.online.tolist()):
            before, after = agent(own(state), i), agent(own(new), i)
            if online:
                kept = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
                assert any((x != y).any() for x, y in kept)
            else:
                same(before, after)
            assert metrics.samples[i] == 5 * online and (online or metrics.correct[i] == 0)
            seen.add(online)
        assert metrics.taken.all()
        state = new
    assert seen == {True, False}


def test_models_that_a_method_does_not_send_are_sent_once_for_losses_and_cross_gradients():
    inner = algorithms.make("isolated")
    own = inner._replace(combine=lambda grads, cross, state, talk: (grads, state))
    objective, network = Objective(CLASSES, lambda_m=0.1), Network(graphs.make("ring", 4))
    state = training.init_state(MODEL, own, network, objective, IMAGE, jax.random.key(0))
    step = training.make_step(MODEL, own, network, objective, lambda t: LR)
    _, metrics = jax.jit(step)(state, batch(4))
    size = 4 * sum(x[0].size for x in jax.tree.leaves(state.params))
    assert metrics.traffic.bytes_sent().tolist() == [2 * size] * 4
