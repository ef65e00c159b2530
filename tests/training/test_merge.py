"""The late merge, at the end or from an epoch on: values, costs, resuming, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import algorithms, graphs
from ccl_jax.devices.parallel import Plan
from ccl_jax.network import Faults, Network
from ccl_jax.network.compression import SIGN
from ccl_jax.network.traffic import all_reduce_bytes
from ccl_jax.runs.checkpoints import Checkpoints
from ccl_jax.training.merge import make_merge
from ccl_jax.training.schedules import AveragingRate
from tests.support import tiny_main
from tests.support.small_run import AGENTS, EPOCHS, Experiment, same, same_rows

KEYS = ("local_accuracy_mean", "local_accuracy_min", "local_accuracy_max", "consensus_distance")


def merging(experiment, devices=1):
    return make_merge(graphs.make("ring", AGENTS), Plan(devices))


@pytest.mark.parametrize("devices", [1, AGENTS])
def test_models_become_their_mean_by_one_all_reduce(devices):
    experiment = Experiment("dsgdm-n")
    plain, plain_rows = experiment.run(experiment.start())
    plain = jax.device_get(plain._replace(key=()))
    plan = Plan(devices)
    statistics = {"mean": np.array([[1.0], [2.0], [6.0]], np.float32)}
    start = experiment.start()._replace(params=plain.params, model_state=statistics)
    start = plan.put(jax.tree.map(jnp.asarray, start))
    merged, traffic = merging(experiment, devices)(start)
    for before, after in zip(
        jax.tree.leaves(plain.params), jax.tree.leaves(merged.params), strict=True
    ):
        np.testing.assert_allclose(after[0], before.mean(axis=0), rtol=1e-6, atol=1e-7)
        assert (np.asarray(after) == np.asarray(after)[:1]).all()
        assert (before != before[:1]).any()
    assert merged.model_state["mean"].tolist() == [[3.0]] * AGENTS
    size = 4 * (1 + sum(x[0].size for x in jax.tree.leaves(plain.params)))
    # A ring all-reduce of 3 agents: 2 (N - 1) / N = 4 / 3 of the model.
    assert traffic.bytes_sent().tolist() == [4 * size // 3] * AGENTS
    assert len(plain_rows) == EPOCHS


def test_only_the_end_is_another():
    experiment = Experiment("dsgdm-n")
    _, plain = experiment.run(experiment.start())
    _, merged = experiment.run(experiment.start(), merge=merging(experiment))
    same_rows(merged[:-1], plain[:-1])
    before, after = plain[-1], merged[-1]
    for name in KEYS:
        assert after[f"{name}_before_merge"] == before[name]
    assert before["consensus_distance"] > 1e-3 and after["consensus_distance"] < 1e-6
    # Everybody now has the model that the consensus was before.
    for name in KEYS[:3]:
        assert after[name] == after["consensus_accuracy"] == before["consensus_accuracy"]
    size = 4 * sum(x[0].size for x in jax.tree.leaves(experiment.first.params))
    for name in ("bytes_sent_per_agent", "bytes_sent_per_agent_max"):
        assert after[name] == before[name] + 4 * size // 3
    others = {k for k in before if k not in KEYS and "bytes" not in k and "loss" not in k}
    assert all(before[k] == after[k] for k in others - {"local_accuracy_std"})


def test_it_resumes_to_the_bit_and_merges_once(tmp_path):
    experiment, moments = Experiment("qg-dsgdm-n"), (3, 8, 11, 12)
    with Checkpoints(tmp_path, keep=99) as saved:

        def save(state, progress):
            if progress.step in moments:
                saved.save(state, progress)

        merge = merging(experiment)
        whole, rows = experiment.run(experiment.start(), on_progress=save, merge=merge)
    for moment in reversed(moments):
        with Checkpoints(tmp_path, keep=99) as saved:
            state, progress = saved.restore(experiment.start())
            assert progress.step == moment
            resumed, resumed_rows = experiment.run(state, progress, merge=merge)
            same(resumed, whole)
            same_rows(resumed_rows, rows)
            saved.drop(moment)


def test_all_reduce_bytes():
    # An agent alone sends nothing, two send the whole once each.
    assert [all_reduce_bytes(1200, n) for n in (1, 2, 3, 4)] == [0, 1200, 1600, 1800]


def test_push_sum_is_refused(tmp_path, capsys):
    flags = ["--algorithm=sgp", "--topology=exponential", "--final_merge"]
    assert tiny_main.main(["digits", f"--workdir={tmp_path / 'run'}", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "final_merge averages parameters" in line
    assert not (tmp_path / "run").exists()


def test_a_run_merges_says_so_and_does_not_go_on(tmp_path, capsys):
    flags = ["digits", "--algorithm=dsgd", "--nofigures", "--epochs=2", "--final_merge"]
    sent = {}
    for name, more in (("merged", []), ("plain", ["--nofinal_merge"])):
        assert tiny_main.main([*flags, f"--workdir={tmp_path / name}", *more]) == 0
        sent[name] = json.loads((tmp_path / name / "summary.json").read_text())
    merged, plain = sent["merged"], sent["plain"]
    assert merged["local_accuracy_min"] == merged["local_accuracy_max"]
    assert merged["local_accuracy_min_before_merge"] == plain["local_accuracy_min"]
    extra = merged["bytes_sent_per_agent"] - plain["bytes_sent_per_agent"]
    assert extra == all_reduce_bytes(4 * merged["parameters"], 3)
    said = {line for line in capsys.readouterr().out.splitlines() if "--resume" in line}
    assert len(said) == 1 and "/plain" in said.pop()
    resumed = [*flags, f"--workdir={tmp_path / 'merged'}", "--resume"]
    assert tiny_main.main(resumed) == 0
    assert tiny_main.main([*resumed, "--epochs=4"]) == 2
    assert "has 2 epochs and then merges its models" in capsys.readouterr().err


# From an epoch on.

RING, SIZE = graphs.make("ring", 4), 6


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("gossip_steps", [1, 3])
def test_averages_are_gossip_before_the_step_and_exact_from_it_on(devices, gossip_steps):
    network = Network(RING, average_from=5, devices=devices, gossip_steps=gossip_steps)
    plan, x = Plan(devices), jnp.arange(24.0).reshape(4, SIZE) ** 2

    def say(x, step):
        talk = network.round(step[0])
        return talk.mix(talk.send("x", x)), talk.traffic()

    mix = jax.jit(plan.wrap(say))
    gossiped, before = mix(plan.put(x), jnp.array([4] * 4))
    w = np.linalg.matrix_power(RING.weights[0], gossip_steps)
    np.testing.assert_allclose(gossiped, w @ np.asarray(x), rtol=1e-6)
    assert before.bytes_sent().tolist() == [2 * 4 * SIZE * gossip_steps] * 4
    exact, after = mix(plan.put(x), jnp.array([5] * 4))
    np.testing.assert_allclose(exact, np.tile(np.asarray(x).mean(axis=0), (4, 1)), rtol=1e-6)
    # A ring all-reduce of 4 agents: 3 / 2 of the model, whatever the number of gossip steps.
    assert after.bytes_sent().tolist() == [36] * 4


@pytest.mark.parametrize(
    "name, rate", [("choco-sgd", 0.1), ("dsgdm-n", AveragingRate(0.1, 1.5, 4)), ("adagossip", 0.1)]
)
def test_an_exact_average_is_one_whatever_the_gossip_rate(name, rate):
    algorithm = algorithms.make(name, gossip_rate=rate)
    x = jnp.arange(24.0).reshape(4, SIZE) ** 2
    state = algorithm.init(x, Network(RING).round(0))
    if name == "adagossip":  # Whose rate is 1 as long as it knows of no second moment.
        state = state._replace(second=jnp.full_like(x, 1e4), exchanges=jnp.int32(9))
    at = lambda start: algorithm.communicate(
        x, state, Network(RING, average_from=start).round(5), 0.1
    )
    exact, gossiped = at(5)[0], at(6)[0]
    np.testing.assert_allclose(exact, np.tile(np.asarray(x).mean(axis=0), (4, 1)), rtol=1e-5)
    assert np.ptp(np.asarray(gossiped), axis=0).min() > 1


def test_what_losses_hear_of_neighbours_is_still_paid_once():
    talk = Network(RING, average_from=0).round(0)
    x = jnp.ones((4, SIZE))
    message = talk.send("x", x)
    talk.mix(message)
    pair = message.join(talk.send("statistics", x[:, :1]))
    talk.gather(pair.map(lambda sent: sent[0]))
    talk.gather(message)
    assert talk.traffic().bytes_sent().tolist() == [36 + 2 * 4 * SIZE + 2 * 4] * 4


def test_agents_train_from_one_model_afterwards():
    experiment = Experiment(
        "dsgd", "chain", average_from=8
    )  # the last of three epochs of four steps
    _, rows = experiment.run(experiment.start())
    plain = Experiment("dsgd", "chain")
    _, others = plain.run(plain.start())
    same_rows(rows[:-1], others[:-1])
    # Rows show the models after a local step, so they differ by that alone.
    assert 0 < rows[-1]["consensus_distance"] < others[-1]["consensus_distance"]
    size = 4 * sum(x[0].size for x in jax.tree.leaves(experiment.first.params))
    sent = [row["bytes_sent_per_agent_max"] for row in rows]
    assert sent[1] - sent[0] == 4 * 2 * size and sent[2] - sent[1] == 4 * (4 * size // 3)


@pytest.mark.parametrize("settings", [{"compressor": SIGN}, {"faults": Faults(drop=0.1)}])
def test_exact_averages_are_refused_with_what_is_not_exact(settings):
    with pytest.raises(ValueError, match=r"merge_at averages exactly .*; leave it out, or"):
        Network(RING, average_from=3, **settings)


def test_the_epoch_is_one_of_the_run(tmp_path, capsys):
    flags = ["digits", "--nofigures", "--epochs=2", "--algorithm=dsgd", "--final_merge"]
    for epoch in (0, 3):
        path = tmp_path / str(epoch)
        assert tiny_main.main([*flags, f"--workdir={path}", f"--merge_at={epoch}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"merge_at is {epoch}; it must be 1 to 2, the epochs" in line and not path.exists()
    run = tmp_path / "run"
    assert tiny_main.main([*flags, f"--workdir={run}", "--merge_at=2"]) == 0
    assert json.loads((run / "summary.json").read_text())["consensus_distance"] < 1e-6
    assert tiny_main.main([*flags, f"--workdir={run}2", "--merge_at=2", "--algorithm=ed"]) == 2
    assert "made for a graph that does not change" in capsys.readouterr().err
