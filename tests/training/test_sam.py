"""SAM: recordings of others' code, plain loops over agents, and what it leaves alone."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ccl_jax.training import Objective, sam
from tests.support import tiny_main
from tests.support.few_steps import LR, FewSteps, agent, apply, same_program
from tests.support.tiny import CLASSES, TinyModel

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures/methods_2026"
RECORDED = np.load(FOLDER / "sam_step_a.npz")
CASES = json.loads(str(RECORDED["config"]))["cases"]
RHO = 0.3
NEIGHBORS = [[1, 3], [0, 2], [1, 3], [2, 0]]


def entropy_of(logits, labels):
    log_p = jax.nn.log_softmax(logits)
    return -jnp.stack([log_p[b, y] for b, y in enumerate(labels)]).mean()


@pytest.mark.parametrize("k", range(len(CASES)))
def test_replays_others_code(k, float64):
    case = {
        name.partition(".")[2]: array
        for name, array in RECORDED.items()
        if name.startswith(f"case{k}.")
    }
    inputs = jnp.asarray(case["inputs"], float)
    rho, adaptive = CASES[k]["rho"], CASES[k]["adaptive"]

    def loss(w):
        return entropy_of(3 * jnp.tanh(inputs @ w[0].T + w[1][None]), case["labels"])

    plain = lambda w: (jax.grad(loss)(w), loss(w))
    start = (case["weight0"], case["bias0"])
    for t in range(CASES[k]["steps"]):
        near = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-13)
        higher = sam.ascend(start, plain(start)[0], rho, adaptive)
        jax.tree.map(near, higher, (case["perturbed_weight"][t], case["perturbed_bias"][t]))
        grads, aux = sam.sharpness_aware(plain, rho, adaptive)(start)
        jax.tree.map(near, grads, (case["sam_grad_weight"][t], case["sam_grad_bias"][t]))
        near(aux, case["loss"][t])
        start = (case["weight"][t], case["bias"][t])


def test_an_ascent_by_hand():
    """One norm over both tensors: 3, 4 of length 5, and relative to sizes 1 and 2, (3, 8)."""
    params, grads = {"a": jnp.array([1.0]), "b": jnp.array([-2.0])}, {"a": 3.0, "b": 4.0}
    grads = jax.tree.map(lambda g: jnp.array([g]), grads)
    up = sam.ascend(params, grads, 0.5)
    np.testing.assert_allclose([up["a"][0], up["b"][0]], [1 + 0.3, -2 + 0.4], rtol=1e-6)
    up = sam.ascend(params, grads, 0.5, adaptive=True)
    away = 0.5 / np.sqrt(73)
    np.testing.assert_allclose([up["a"][0], up["b"][0]], [1 + 3 * away, -2 + 16 * away], rtol=1e-6)
    nothing = jax.tree.map(jnp.zeros_like, grads)
    assert sam.ascend(params, nothing, 0.5) == params


def ccl_loss(params, images, labels, z, back, lambdas):
    """Cross-entropy + lambda_m L_mv + lambda_d L_dv; z and the class sums that came back are given."""
    features, logits = apply(params, images)
    towards = sum(jnp.square(features - each).mean() for each in z)
    sums, counts = (jnp.array(x) for x in back)
    for feature, label in zip(jax.lax.stop_gradient(features), labels, strict=True):
        sums, counts = sums.at[label].add(feature), counts.at[label].add(1)
    target = jnp.stack([sums[y] / counts[y] for y in labels])
    means = jnp.square(features - target).mean()
    return entropy_of(logits, labels) + lambdas[0] * towards + lambdas[1] * means


@pytest.mark.parametrize("lambdas", [(0.0, 0.0), (0.4, 0.3)], ids=["plain", "with CCL"])
def test_steps_against_a_loop(lambdas):
    """What is heard is the same at both points; weight decay acts at the first, and does not ascend."""
    decay = 0.1
    objective = Objective(CLASSES, *lambdas, sam_rho=RHO)
    run = FewSteps(objective=objective, hyper={"weight_decay": decay})
    for t in range(2):
        before = run.state.params
        data = run.step(t)
        for i in range(4):
            images, labels = data.images[i], data.labels[i].tolist()
            group = [i, *NEIGHBORS[i]]
            w = jax.tree.map(lambda x, g=group: sum(x[j] for j in g) / 3, before)
            z = [apply(agent(before, j), images)[0] for j in NEIGHBORS[i]]
            sums, counts = np.zeros((CLASSES, 6), np.float32), np.zeros(CLASSES, np.float32)
            for j in NEIGHBORS[i]:
                features = np.asarray(apply(agent(before, i), data.images[j])[0])
                for feature, label in zip(features, data.labels[j].tolist(), strict=True):
                    sums[label] += feature
                    counts[label] += 1
            gradient = jax.grad(ccl_loss)
            rest = (images, labels, z, (sums, counts), lambdas)
            g = gradient(w, *rest)
            norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(g)))
            h = gradient(jax.tree.map(lambda x, y, n=norm: x + RHO * y / n, w, g), *rest)
            moved = jax.tree.map(lambda x, y: x - LR * (y + decay * x), w, h)
            close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
            jax.tree.map(close, agent(run.state.params, i), moved)
            close(run.metrics.cross_entropy[i], entropy_of(apply(w, images)[1], labels))


def test_cross_gradients_ascend_too():
    """NGC: every gradient that is merged, of a neighbour's model as of the own, is one of SAM."""
    run = FewSteps("ngc", objective=Objective(CLASSES, sam_rho=RHO), hyper={"alpha": 0.0})
    before = run.state.params
    data = run.step(0)

    def gradient(params, i):
        loss = lambda p: entropy_of(apply(p, data.images[i])[1], data.labels[i].tolist())
        g = jax.grad(loss)(params)
        norm = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(g)))
        return jax.grad(loss)(jax.tree.map(lambda x, y: x + RHO * y / norm, params, g))

    plain = FewSteps("ngc", hyper={"alpha": 0.0})
    plain.step(0)
    for i in range(4):
        w = jax.tree.map(lambda x, i=i: sum(x[j] for j in (i, *NEIGHBORS[i])) / 3, before)
        grads = [gradient(w, i), *(gradient(agent(before, j), i) for j in NEIGHBORS[i])]
        # Nesterov's first step is (1 + beta) times the gradient.
        moved = jax.tree.map(lambda x, *g: x - LR * 1.9 * sum(g) / 3, w, *grads)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-6)
        jax.tree.map(close, agent(run.state.params, i), moved)
        far = jax.tree.map(
            lambda x, y: float(abs(x - y).max()), agent(plain.state.params, i), moved
        )
        assert max(jax.tree.leaves(far)) > 1e-3


@pytest.mark.parametrize("method", ["dsgd", "cga"])
@pytest.mark.parametrize("lambdas", [(0, 0), (0.1, 0.1)])
def test_a_length_of_zero_is_no_sam_bit_for_bit(method, lambdas):
    zero = Objective(CLASSES, *lambdas, sam_rho=0.0)
    same_program(Objective(CLASSES, *lambdas), zero, method=method)


class Normalised(nn.Module):
    """Batch norm, which keeps statistics; tells of each forward pass that is traced."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        PASSES.append("own" if train else "other")
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(images)
        return TinyModel()(x)


PASSES = []


def test_what_is_reported_and_kept_is_of_the_point_below():
    """Loss, hits, batch statistics and prototypes are those of a step without SAM."""
    chosen = {"lambda_d": 0.1, "feature_losses": (("prototype", 0.5),)}
    runs = [
        FewSteps(objective=Objective(CLASSES, sam_rho=rho, **chosen), model=Normalised())
        for rho in (0.0, RHO)
    ]
    passes = []
    for run in runs:
        PASSES.clear()
        run.step(0)
        passes.append(sorted(PASSES))
    assert passes == [["other", "own"], ["other", "own", "own"]]
    plain, ascended = runs
    for name in ("cross_entropy", "losses", "correct", "traffic"):
        found, expected = (getattr(run.metrics, name) for run in (ascended, plain))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    kept = lambda run: (run.state.model_state, run.state.kept)
    near = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
    jax.tree.map(near, kept(ascended), kept(plain))
    apart = jax.tree.map(lambda x, y: float(abs(x - y).max()), *(r.state.params for r in runs))
    assert max(jax.tree.leaves(apart)) > 1e-3


def test_an_agent_without_samples_stays_where_it_is():
    run = FewSteps("isolated", objective=Objective(CLASSES, sam_rho=RHO))
    before = agent(run.state.params, 0)
    run.step(0, padded=5)
    jax.tree.map(np.testing.assert_array_equal, agent(run.state.params, 0), before)


def test_clipping_is_of_the_gradient_that_is_used():
    """It is shorter than the bound or as long; the ascent is of the whole gradient."""
    free, clipped = (
        FewSteps(objective=Objective(CLASSES, sam_rho=RHO, clip_norm=norm)) for norm in (None, 0.2)
    )
    for run in (free, clipped):
        run.step(0)
    norms = np.asarray(free.metrics.gradient_norm)
    np.testing.assert_allclose(clipped.metrics.gradient_norm, norms, rtol=1e-5)
    assert (norms > 0.2).all()


def test_dfedsam_from_the_command_line(tmp_path):
    flags = ("--epochs=2", "--eval_every=1", "--batch_size=64", "--nofigures", "--local_steps=2")
    chosen = ("--algorithm=dsgdm", "--hparam=restart_momentum=true", "--sam_rho=0.05")
    assert tiny_main.main(["tiny_main", *flags, *chosen, f"--workdir={tmp_path / 'run'}"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["label"] == "SAM + dsgdm"
    assert (summary["sam_rho"], summary["sam_adaptive"]) == (0.05, False)
