"""One battery over every entry of the registry, on small heterogeneous quadratics.

Agent i has the gradient A_i (x - c_i). `EXPECTED` says for each method what it should do; a method
that is not in it fails.
"""

import functools
import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.network import Network
from ccl_jax.training import schedules

SIZE, AGENTS, LR, BETA = 3, 5, 0.05, 0.5


class Expected(NamedTuple):
    """What a method should do in the battery.

    Attributes:
      limit: Where it goes at a constant rate: "exact" for the common optimum (where the gradient is
        taken), a number for the fixed point of DSGD at that many times the learning rate, "alone" for
        everybody's own optimum, "near" where there is no formula.
      centralized: What one agent, and equal agents on a full graph, should equal; None where the method
        differs from SGD even then.
      graph: What it runs on.
      over_time: Whether it accepts graphs that change.
      keeps_mean: Whether the mean stays when gradients are 0.
      full_graph: Whether the second half of `centralized` holds.
      hyper: Hyper-parameters.
      lr: Learning rate.
    """

    limit: str | float
    centralized: optax.GradientTransformation | None = None
    graph: str = "ring"
    over_time: bool = True
    keeps_mean: bool = True
    full_graph: bool = True
    hyper: Mapping[str, Any] = MappingProxyType({})
    lr: float = LR


PLAIN, HEAVY = optax.sgd(LR), optax.sgd(LR, BETA)
NESTEROV = optax.sgd(LR, BETA, nesterov=True)
UNIT_STEP = optax.chain(optax.normalize_by_update_norm(), optax.scale(-LR))
MOMENTUM = 1 / (1 - BETA)  # local momentum in steady state is a larger step

EXPECTED = {
    "dsgd": Expected(1.0, PLAIN),
    "dsgdm": Expected(MOMENTUM, HEAVY),
    "dsgdm-n": Expected(MOMENTUM, NESTEROV),
    # With the move made by gossip as momentum, worked out from its two lines at rest.
    "qg-dsgdm": Expected(1.0, HEAVY),
    "qg-dsgdm-n": Expected(1 / (1 - BETA + BETA**2), NESTEROV),
    "qg-dsgdm-ema": Expected(1.0),
    "qg-dsgdm-n-ema": Expected(1 + BETA),
    "decentlam": Expected(1.0, HEAVY),
    "sgp": Expected(MOMENTUM, NESTEROV),
    "d2": Expected("exact", PLAIN, over_time=False, hyper={"momentum": 0.0}),
    "exact-diffusion": Expected("exact", NESTEROV, over_time=False),
    "ed": Expected("exact", PLAIN, over_time=False),
    "edm": Expected(
        "exact", optax.chain(optax.ema(BETA, debias=False), optax.sgd(LR)), over_time=False
    ),
    "nids": Expected("exact", PLAIN, over_time=False),
    "led": Expected("exact", PLAIN, over_time=False),
    "proxskip": Expected("exact", PLAIN, over_time=False),
    "extra": Expected("exact", PLAIN, over_time=False),
    # Nothing but the gradient damps it: a larger rate.
    "simplegt": Expected("exact", optax.sgd(0.3), over_time=False, lr=0.3),
    "k-gt": Expected("exact", PLAIN),
    "atc-gt": Expected("exact", PLAIN),
    "aug-dgm": Expected("exact", PLAIN),
    "dsgt": Expected("exact", NESTEROV),
    "update-tracking": Expected("exact", NESTEROV),
    "momentum-tracking": Expected("exact", HEAVY),
    "all-reduce": Expected("exact", NESTEROV),
    "fedavg": Expected("exact", HEAVY, graph="star", over_time=False, hyper={"nesterov": False}),
    "relaysgd": Expected(
        "exact", NESTEROV, graph="chain", over_time=False, keeps_mean=False, full_graph=False
    ),
    "isolated": Expected("alone", NESTEROV),
    "gut": Expected("near", PLAIN, over_time=False),
    "qg-gutm": Expected("near", over_time=False),
    "ngc": Expected("near", NESTEROV),
    "comp-ngc": Expected("near", over_time=False),
    "cga": Expected("near", NESTEROV, full_graph=False),
    "comp-cga": Expected("near", over_time=False),
    "adam": Expected("near", optax.adam(LR)),
    "adamw": Expected("near", optax.adamw(LR, weight_decay=0.0)),
    "optax": Expected("near", optax.adagrad(LR), hyper={"optimizer": "adagrad"}),
    "qg-adam": Expected("near"),
    "beer": Expected("exact", PLAIN),
    "motef": Expected("exact"),
    "choco-sgd": Expected(MOMENTUM, HEAVY),
    "adagossip": Expected("near", NESTEROV, keeps_mean=False, hyper={"gossip_rate": 0.1}),
    # A vector's step has length LR, as these have no matrices.
    "muon": Expected("near", optax.chain(optax.trace(BETA, True), UNIT_STEP)),
    "demuon": Expected("near", optax.chain(optax.ema(BETA, debias=False), UNIT_STEP)),
}

pytestmark = pytest.mark.usefixtures("optimized")


def every_kind():
    """All methods; names that share a builder with an earlier one are marked as slow."""
    names, seen = [], set()
    for name, method in algorithms.REGISTRY.items():
        names.append(pytest.param(name, marks=pytest.mark.slow if method.build in seen else ()))
        seen.add(method.build)
    return pytest.mark.parametrize("name", names)


def test_the_table_has_every_method():
    assert set(EXPECTED) == set(algorithms.REGISTRY)


class Runner:
    """A method on a graph, jitted once; data, rate and step are arguments."""

    def __init__(
        self, name: str, graph: str | None = None, agents: int = AGENTS, **given: Any
    ) -> None:
        method, self.expected = algorithms.get(name), EXPECTED[name]
        hyper = {"momentum": BETA, "weight_decay": 0.0} | dict(self.expected.hyper) | given
        takes = set(method.hyperparameters) | set(self.expected.hyper)
        hyper = {key: value for key, value in hyper.items() if key in takes}
        topology = graphs.make(
            graph or self.expected.graph, agents, stochastic=method.stochastic, seed=3
        )
        method.check(topology, **hyper)
        self.topology, self.network = topology, Network(topology)
        self.algorithm = algorithms.make(name, **hyper)
        self.compilations = 0
        self.step = jax.jit(self._step)
        self.init = jax.jit(lambda x: self.algorithm.init(x, self.network.round(0)))

    def _step(self, params, state, t, a, c, lr):
        self.compilations += 1

        def gradient(x, data):
            curvature, optimum = data
            return {"w": curvature @ (x["w"] - optimum)}

        talk = self.network.round(t)
        own = lambda at, _: (jax.vmap(gradient)(at, (a, c)), at["w"])
        cross = lambda models: talk.cross(gradient, models, (a, c))
        new = algorithms.advance(self.algorithm, params, state, talk, lr, own, cross)
        return new.params, new.state, new.aux

    def run(self, a, c, x0, steps, start=None):
        """Points where gradients were taken, `[steps, agents, size]`, and the last (x, state, t)."""
        a, c, x0, lr = (jnp.asarray(value, float) for value in (a, c, x0, self.expected.lr))
        params, state, t = start or ({"w": x0}, self.init({"w": x0}), 0)
        path = []
        for k in range(t, t + steps):
            params, state, at = self.step(params, state, jnp.int32(k), a, c, lr)
            path.append(at)
        return np.stack(path), (params, state, t + steps)


@functools.cache
def on_its_graph(name, double=False):
    """In double precision where the caller has that on."""
    return Runner(name)


def problem(agents=AGENTS, seed=0):
    """Curvatures, optima and a common start; eigenvalues in [0.5, 2]."""
    rng = np.random.default_rng(seed)
    bases = [np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0] for _ in range(agents)]
    a = np.stack([q @ np.diag(rng.uniform(0.5, 2, SIZE)) @ q.T for q in bases])
    return a, rng.normal(size=(agents, SIZE)), np.tile(rng.normal(size=SIZE), (agents, 1))


def optimum(a, c):
    return np.linalg.solve(a.sum(axis=0), np.einsum("ixy,iy->x", a, c))


def fixed_point_of_dsgd(w, a, c, eta):
    """Where gradients are taken, xt, when x = xt - eta A (xt - c) and xt = W x: a linear system."""
    mixing = np.kron(w, np.eye(SIZE))
    curvature = np.zeros_like(mixing)
    for i, block in enumerate(a):
        curvature[i * SIZE : (i + 1) * SIZE, i * SIZE : (i + 1) * SIZE] = block
    eye = np.eye(len(mixing))
    right = eta * curvature @ c.ravel()
    x = np.linalg.solve(eye - (eye - eta * curvature) @ mixing, right)
    return (mixing @ x).reshape(c.shape)


with_limit = pytest.mark.parametrize(
    "name", [name for name, expected in EXPECTED.items() if expected.limit != "near"]
)


def limit_of(runner, a, c):
    """Where the agents should take their gradients in the end, `[agents, size]`."""
    limit = runner.expected.limit
    if limit == "alone":
        return c
    if limit == "exact":
        return np.broadcast_to(optimum(a, c), c.shape)
    return fixed_point_of_dsgd(runner.topology.weights[0], a, c, limit * LR)


@with_limit
def test_converges_to_where_it_should(name, float64):
    runner, (a, c, x0) = on_its_graph(name, double=True), problem()
    path, _ = runner.run(a, c, x0, 600)
    assert path.dtype == np.float64
    np.testing.assert_allclose(path[-1], limit_of(runner, a, c), rtol=0, atol=1e-10)
    errors = np.abs(path - optimum(a, c)).max(axis=(1, 2))
    if runner.expected.limit == "exact":  # at a linear rate
        for t in (50, 100, 200):
            assert errors[2 * t] < 0.3 * errors[t]
    elif runner.expected.limit != "alone":
        # Its bias is no roundoff: the agents stay away from the optimum and from each other.
        assert errors[-1] > 0.02


@with_limit
def test_float32_comes_as_near_as_it_resolves(name):
    runner, (a, c, x0) = on_its_graph(name), problem()
    path, _ = runner.run(a, c, x0, 450)
    # D2 adds up over 450 steps that rows of float32 thirds sum to 1 + 3e-8, which moves a limit of 0.88
    # at lr 0.05 and a mean curvature of 0.86 by 450 * 3e-8 * 0.88 / (0.05 * 0.86); others do not add up.
    np.testing.assert_allclose(path[-1], limit_of(runner, a, c), atol=3e-4)


@pytest.mark.parametrize(
    "name", [name for name, expected in EXPECTED.items() if expected.limit == "near"]
)
def test_comes_nearer_to_the_optimum(name):
    runner, (a, c, x0) = on_its_graph(name), problem()
    path, _ = runner.run(a, c, x0, 450)
    best = optimum(a, c)
    assert np.abs(path[-1].mean(axis=0) - best).max() < 0.4 * np.abs(path[0] - best).max()


@every_kind()
def test_a_warm_up_from_rate_zero_makes_no_gradient_of_roundoff(name):
    """In float32 thirds of equal models sum to others, by roundoff; in float64 to nearly the same."""
    a, c, _ = problem()
    third, starts = np.float32(1 / 3), np.random.default_rng(2).normal(size=100).astype(np.float32)
    off = np.abs(third * starts + third * starts + third * starts - starts)
    x0 = np.tile(starts[np.argsort(off)[-SIZE:]], (AGENTS, 1))
    ends = []
    for double in (False, True):
        with jax.enable_x64(double):
            runner = on_its_graph(name, double=double)
            params = {"w": jnp.asarray(x0, float)}
            state = runner.init(params)
            for t, lr in enumerate([0.0, 0.0, 0.01, 0.02, 0.03, 0.04]):
                given = (jnp.asarray(value, float) for value in (a, c, lr))
                params, state, _ = runner.step(params, state, jnp.int32(t), *given)
            ends.append(np.asarray(params["w"], float))
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-4)


@every_kind()
def test_the_mean_is_kept_where_nothing_is_learned(name, eps):
    runner = on_its_graph(name, double=eps < 1e-7)
    start = np.random.default_rng(1).normal(size=(AGENTS, SIZE))
    nothing = np.zeros((AGENTS, SIZE, SIZE))
    _, (params, _, _) = runner.run(nothing, np.zeros((AGENTS, SIZE)), start, 30)
    kept = np.allclose(params["w"].mean(axis=0), start.mean(axis=0), rtol=0, atol=160 * eps)
    assert kept == runner.expected.keeps_mean


@every_kind()
def test_the_state_saves_and_restores(name):
    runner, (a, c, x0) = on_its_graph(name), problem()
    _, (params, state, t) = runner.run(a, c, x0, 4)
    for leaf in jax.tree.leaves(state):
        assert jnp.ndim(leaf) == 0 or leaf.shape[0] == AGENTS
    leaves, tree = jax.tree.flatten((params, state))
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file) as saved:
        params_again, state_again = jax.tree.unflatten(tree, map(jnp.asarray, saved.values()))
    on, _ = runner.run(a, c, x0, 4, (params, state, t))
    again, _ = runner.run(a, c, x0, 4, (params_again, state_again, t))
    np.testing.assert_array_equal(on, again)


@every_kind()
def test_dtypes_are_kept_and_nothing_recompiles(name):
    runner, (a, c, x0) = on_its_graph(name), problem()
    runner.run(a, c, x0, 3)
    assert runner.compilations == 1
    for dtype in (jnp.float32, jnp.bfloat16):
        params = {"w": jnp.zeros((AGENTS, SIZE), dtype)}
        data = [jnp.zeros(value.shape, dtype) for value in (a, c)]
        state = jax.eval_shape(lambda x: runner.algorithm.init(x, runner.network.round(0)), params)
        new, new_state, at = jax.eval_shape(
            runner._step, params, state, jnp.int32(0), *data, jnp.float32(LR)
        )
        assert new["w"].dtype == at.dtype == dtype
        kinds = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
        assert kinds(new_state) == kinds(state)
    runner.compilations = 1  # tracing for shapes is none


@every_kind()
def test_a_graph_over_time_compiles_once_or_is_refused(name):
    if not EXPECTED[name].over_time:
        with pytest.raises(ValueError, match="a graph that does not change"):
            Runner(name, "random-regular:2:3", 6)
        return
    runner, (a, c, x0) = Runner(name, "random-regular:2:3", 6), problem(6)
    path, _ = runner.run(a, c, x0, 7)
    assert runner.compilations == 1
    assert np.isfinite(path).all()


@every_kind()
def test_the_gossip_rate_may_be_a_schedule(name):
    if "gossip_rate" not in algorithms.get(name).hyperparameters:
        pytest.skip("it has no gossip rate")
    a, c, x0 = problem()
    run = lambda rate: Runner(name, gossip_rate=rate).run(a, c, x0, 8)[0]
    constant, halved = run(0.04), run(lambda step: jnp.where(step < 4, 0.04, 0.02))
    # Up to the last bit: a rate that is known to the compiler may be multiplied in elsewhere.
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    same(run(schedules.AveragingRate(0.04, 1.0, 3)), constant)
    same(halved[:4], constant[:4])
    assert np.abs(halved[7] - constant[7]).max() > 1e-4


def centralized(name, a, c, x0, steps):
    """Plain optax on one model."""
    optimizer = EXPECTED[name].centralized
    x, path = jnp.asarray(x0, float), []
    with jax.numpy_dtype_promotion("standard"):
        memory = optimizer.init(x)
        for _ in range(steps):
            path.append(x)
            gradient = jnp.asarray(a, float) @ (x - jnp.asarray(c, float))
            updates, memory = optimizer.update(gradient, memory, x)
            x = optax.apply_updates(x, updates)
    return np.stack(path)


with_centralized = pytest.mark.parametrize(
    "name", [name for name, expected in EXPECTED.items() if expected.centralized]
)


@with_centralized
def test_one_agent_is_centralized(name):
    a, c, x0 = problem(1)
    path, _ = Runner(name, agents=1).run(a, c, x0, 12)
    np.testing.assert_allclose(path[:, 0], centralized(name, a[0], c[0], x0[0], 12), atol=1e-5)


@with_centralized
def test_equal_data_on_a_full_graph_is_all_reduce(name):
    expected = EXPECTED[name]
    if not expected.full_graph:
        pytest.skip("it weighs its neighbours otherwise")
    a, c, x0 = problem(1)
    runner = Runner(name, "full" if expected.graph == "ring" else None, 3)
    path, _ = runner.run(*(np.repeat(value, 3, axis=0) for value in (a, c, x0)), 12)
    wanted = centralized(name, a[0], c[0], x0[0], 12)
    np.testing.assert_allclose(path, np.repeat(wanted[:, None], 3, axis=1), atol=1e-5)
