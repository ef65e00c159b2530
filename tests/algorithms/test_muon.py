"""Muon and DeMuon: which matrices steps become, and their two recursions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.algorithms import muon
from ccl_jax.network import Faults, Network, compression
from tests.algorithms.quadratics import Quadratics

# Where five iterations bring a singular value of 0.05 to 1 (a grid of its polynomial: 0.682 to 1.134).
BAND = (0.68, 1.14)


def matrix(rows, columns, seed=0):
    """With singular values from 0.5 to 1."""
    rng = np.random.default_rng(seed)
    rank = min(rows, columns)
    u, v = (np.linalg.qr(rng.normal(size=(n, rank)))[0] for n in (rows, columns))
    return u, np.linspace(0.5, 1, rank), v.T


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_newton_schulz_moves_singular_values_only(shape, float64):
    u, s, vt = matrix(*shape)
    out = np.asarray(muon.newton_schulz(jnp.asarray((u * s) @ vt)))
    inner = u.T @ out @ vt.T
    # The singular vectors stay: within the band of 1, this is the polar factor.
    np.testing.assert_allclose(inner, np.diag(np.diag(inner)), rtol=0, atol=1e-12)
    np.testing.assert_allclose(u @ inner @ vt, out, rtol=0, atol=1e-12)
    assert (BAND[0] < np.diag(inner)).all() and (np.diag(inner) < BAND[1]).all()
    # Each singular value by itself: p(s) = 3.4445 s - 4.775 s^3 + 2.0315 s^5, five times.
    s = s / np.linalg.norm(s)
    for _ in range(5):
        s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
    np.testing.assert_allclose(np.diag(inner), s, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (3, 6)])
def test_the_polar_factor_is_exact(shape, float64):
    u, s, vt = matrix(*shape)
    out = muon.polar(jnp.asarray((u * s) @ vt))
    np.testing.assert_allclose(out, u @ vt, rtol=0, atol=1e-13)


def test_matrices_are_tensors_of_two_axes_or_more(float64):
    rng = np.random.default_rng(1)
    tree = {
        "bias": jnp.array([3.0, 4.0]),
        "dense": jnp.asarray(rng.normal(size=(5, 3))),
        "kernel": jnp.asarray(rng.normal(size=(2, 2, 3, 4))),
        "scale": jnp.asarray(-2.0),
    }
    out = muon.direction("polar", tree)
    np.testing.assert_allclose(out["bias"], [0.6, 0.8], rtol=1e-12)
    np.testing.assert_allclose(out["scale"], -1, rtol=1e-12)
    np.testing.assert_allclose(out["dense"].T @ out["dense"], np.eye(3), atol=1e-12)
    flat = out["kernel"].reshape(12, 4)
    np.testing.assert_allclose(flat.T @ flat, np.eye(4), atol=1e-12)
    # U V^T is the nearest such matrix: its product with G has the sum of singular values as trace.
    nuclear = np.linalg.svd(np.asarray(tree["kernel"]).reshape(12, 4), compute_uv=False).sum()
    np.testing.assert_allclose(np.vdot(tree["kernel"], out["kernel"]), nuclear, rtol=1e-12)


def test_other_steps():
    tree = {"a": jnp.array([[3.0]]), "b": jnp.array([0.0, 4.0])}
    assert muon.direction("plain", tree) is tree
    out = muon.direction("normalized", tree)
    np.testing.assert_allclose(out["a"], [[0.6]], rtol=1e-6)
    np.testing.assert_allclose(out["b"], [0.0, 0.8], rtol=1e-6)
    nothing = muon.direction("newton-schulz", jax.tree.map(jnp.zeros_like, tree))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(nothing))
    with pytest.raises(ValueError, match="step is 'svd'"):
        algorithms.make("demuon", step="svd")


@pytest.mark.parametrize("steps", [0, 2.5, 101, True])
def test_iterations_are_a_whole_number(steps):
    with pytest.raises(ValueError, match="it must be a whole number, 1 to 100"):
        algorithms.make("muon", newton_schulz_steps=steps)


@pytest.mark.parametrize("name", ["muon", "demuon"])
def test_iterations_can_be_chosen(name, float64):
    plain = dict(momentum=0.0, weight_decay=0.0)
    at, gradients, _, last = trained(name, 1, 1, 0.3, newton_schulz_steps=3, **plain)
    step = (at[0]["w"][0] - last["w"][0]) / 0.3
    np.testing.assert_allclose(step, muon.newton_schulz(gradients[0]["w"][0], 3), atol=1e-12)


SHAPES = {"w": (4, 3), "b": (3,)}


def trained(name, agents, steps, lr, **hyper):
    """Runs on given gradients; the models they were taken at, the gradients and the states."""
    rng = np.random.default_rng(2)
    algorithm = algorithms.make(name, **hyper)
    network = Network(graphs.make("full" if agents < 3 else "ring", agents))
    draw = lambda: {k: jnp.asarray(rng.normal(size=(agents, *s))) for k, s in SHAPES.items()}
    params, gradients, at, states = draw(), [draw() for _ in range(steps)], [], []
    state = algorithm.init(params, network.round(0))
    for t, gradient in enumerate(gradients):
        talk = network.round(jnp.int32(t))
        own = lambda x, _, g=gradient: (g, x)
        new = algorithms.advance(algorithm, params, state, talk, jnp.asarray(lr), own)
        params, state = new.params, new.state
        at.append(new.aux)
        states.append(state)
    return at, gradients, states, params


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_of_one_agent_by_hand(nesterov, float64):
    beta, lam, lr = 0.8, 0.1, 0.3
    at, gradients, _, last = trained(
        "muon", 1, 4, lr, momentum=beta, nesterov=nesterov, weight_decay=lam
    )
    for key in SHAPES:
        m = 0.0
        for x, g, after in zip(at, gradients, [*at[1:], last], strict=True):
            u = g[key][0] + lam * x[key][0]
            m = beta * m + u
            d = u + beta * m if nesterov else m
            d = d / np.linalg.norm(d) if d.ndim == 1 else muon.newton_schulz(d)
            np.testing.assert_allclose(after[key][0], x[key][0] - lr * d, rtol=0, atol=1e-12)


def test_the_tracker_has_the_mean_of_the_momenta(float64):
    beta, lam = 0.8, 0.1
    at, gradients, states, _ = trained("demuon", 5, 6, 0.3, momentum=beta, weight_decay=lam)
    for key in SHAPES:
        m = np.zeros((5, *SHAPES[key]))
        for x, g, state in zip(at, gradients, states, strict=True):
            m = beta * m + (1 - beta) * (g[key] + lam * x[key])
            np.testing.assert_allclose(state.momentum[key], m, rtol=0, atol=1e-12)
            mean = state.tracker[key].mean(axis=0)
            np.testing.assert_allclose(mean, m.mean(axis=0), rtol=0, atol=1e-12)
            # Gossip keeps the mean but does not reach it in a step.
            assert np.abs(state.tracker[key] - m).max() > 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"local_steps": 3},
        {"compressor": compression.INT8},
        {"faults": Faults(drop=0.3, drop_burst=3, offline=0.1, offline_length=3, seed=1)},
    ],
    ids=["plain", "rarely", "int8", "losses"],
)
def test_plain_steps_are_gradient_tracking(settings, float64):
    # Without momentum and orthogonalisation y is DSGT's tracker, and both end in the common optimum.
    quadratics = Quadratics(agents=5, size=3, seed=3, **settings)
    algorithm = algorithms.make("demuon", momentum=0.0, weight_decay=0.0, step="plain")
    last = quadratics.run(algorithm, [0.1] * 600)[-1]
    a, c = quadratics.curvature, quadratics.minimum
    best = np.linalg.solve(a.sum(axis=0), np.einsum("ixy,iy->x", a, c))
    np.testing.assert_allclose(last, np.tile(best, (5, 1)), rtol=0, atol=1e-8)
