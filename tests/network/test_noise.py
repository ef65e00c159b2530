"""Noise on messages: its size and independence, who hears it, and that nothing else changes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax import graphs
from ccl_jax.devices.parallel import Plan
from ccl_jax.network import Faults, Network
from ccl_jax.network.channels import Compressed, Exact, Feedback, Lagging, Noisy
from ccl_jax.network.compression import SIGN
from tests.support import tiny_main

AGENTS, SIZE, SCALE = 8, 4000, 0.5
RING = graphs.make("ring", AGENTS)


def noisy(**settings):
    return Network(RING, message_noise=SCALE, noise_seed=3, **settings)


def heard(talk, name="x"):
    """What is known of zeros: the noise."""
    return np.asarray(talk.send(name, jnp.zeros((AGENTS, SIZE))).known)


def test_it_has_the_standard_deviation_that_was_asked_for_and_is_fresh():
    noise = [heard(noisy().round(step)) for step in (0, 1)]
    talk = noisy().round(1)
    noise += [heard(talk, "y"), heard(noisy(local_steps=2).round(0), "y")]
    together = np.concatenate(noise)  # of 32 messages, no two alike
    # 4000 draws: the deviation is known to 1.1%, means and correlations to 1 / 63; five of each.
    np.testing.assert_allclose(together.std(axis=1), SCALE, rtol=0.056)
    np.testing.assert_allclose(together.mean(axis=1), 0, atol=5 * SCALE / 63)
    np.testing.assert_allclose(np.corrcoef(together), np.eye(32), atol=5 / 63)


def test_all_receivers_hear_the_same_and_agents_know_themselves():
    talk, x = noisy().round(4), jnp.arange(3.0 * AGENTS).reshape(AGENTS, 3)
    message = talk.send("x", x)
    known, own = np.asarray(message.known), np.asarray(x)
    np.testing.assert_array_equal(talk.gather(message)[0], known[[1, 7]])
    mixed = (own + np.roll(known, 1, axis=0) + np.roll(known, -1, axis=0)) / 3
    np.testing.assert_allclose(talk.mix(message), mixed, rtol=1e-6, atol=1e-6)
    assert np.abs(known - own).max() > 0.1
    # Bytes are those of exact messages, and measurements hear none.
    np.testing.assert_array_equal(talk.traffic().bytes_sent(), [24] * AGENTS)
    np.testing.assert_array_equal(talk.measuring().send("x", x).known, x)
    assert (talk.send("s", x, compress=False, noise=False).known == x).all()
    whole = x.astype(jnp.int32)
    np.testing.assert_array_equal(talk.send("whole", whole).known, whole)


def test_an_average_over_many_agents_is_unbiased():
    agents = 64
    network = Network(graphs.make("full", agents), message_noise=SCALE)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(agents, SIZE)), jnp.float32)
    talk = network.round(0)
    off = np.asarray(talk.mix(talk.send("x", x))) - np.asarray(x.mean(axis=0))
    # Each agent hears 63 of 64 with noise.
    np.testing.assert_allclose(off.std(axis=1), SCALE * np.sqrt(63) / 64, rtol=0.056)
    assert np.abs(off.mean(axis=1)).max() < 5 * SCALE / 8 / 63


def test_every_gossip_step_has_noise_of_its_own():
    w = RING.weights[0]
    once = noisy().round(0)
    first = np.asarray(once.mix(once.send("x", jnp.zeros((AGENTS, SIZE)))))
    twice = noisy(gossip_steps=2).round(0)
    both = np.asarray(twice.mix(twice.send("x", jnp.zeros((AGENTS, SIZE)))))
    second = both - w @ first
    assert np.abs(np.corrcoef(first[0], second[0])[0, 1]) < 5 / 63
    np.testing.assert_allclose(second.std(axis=1), SCALE * np.sqrt(2) / 3, rtol=0.056)


def test_who_works_alone_hears_none():
    talk, x = noisy(local_steps=2).round(1), jnp.full((AGENTS, 3), 0.1)
    np.testing.assert_array_equal(talk.mix(talk.send("x", x)), x)


def test_it_comes_before_compression_and_after_a_delay():
    c = noisy(compressor=SIGN, faults=Faults(straggle=0.5, delay=2)).channels
    noise = Noisy(SCALE, Lagging(2))
    assert (c.untouched, c.exact, c.usual) == (Lagging(2), noise, Compressed(SIGN, noise))
    assert c.replies == Feedback(SIGN, Noisy(SCALE, Exact()))
    assert c.exact_replies == Noisy(SCALE, Exact())
    # Copies start at the common start, and the first difference is the sign of the noise.
    talk, x = noisy(compressor=SIGN).round(0), jnp.full((AGENTS, SIZE), 7.0)
    message = talk.send("x", x)
    said = np.asarray(message.known) - 7
    np.testing.assert_allclose(np.abs(said), SCALE * np.sqrt(2 / np.pi), rtol=0.05)
    # The mean is kept.
    np.testing.assert_allclose(talk.mix(message).mean(axis=0), 7, rtol=0, atol=1e-5)


@pytest.mark.parametrize("devices", [2, 4])
def test_it_does_not_depend_on_the_number_of_devices(devices):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(AGENTS, 5)), jnp.float32)

    def known(count):
        network = noisy(devices=count, compressor=SIGN)

        def say(x, _):
            talk = network.round(3)
            message = talk.send("x", x)
            home = talk.reply("r", talk.gather(message))
            return message.known, (talk.mix(message), home)

        plan = Plan(count)
        known, (mixed, home) = jax.jit(plan.wrap(say))(plan.put(x), ())
        return known, mixed, home

    one, many = known(1), known(devices)
    np.testing.assert_array_equal(one[0], many[0])
    for a, b in zip(one[1:], many[1:], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_none_is_the_network_without():
    assert Network(RING, message_noise=0.0).channels == Network(RING).channels
    assert Network(RING, message_noise=0.0).noise_key(jnp.int32(0)) is None
    with pytest.raises(ValueError, match="message_noise is -1; it must be a number >= 0"):
        Network(RING, message_noise=-1)


def test_flags(tmp_path, capsys):
    flags = ["digits", "--algorithm=dsgd", "--nofigures", "--epochs=1", "--lambda_d=0.1"]
    summaries = {}
    for noise in ("0", "0.01", "-1"):
        workdir = tmp_path / noise
        code = tiny_main.main([*flags, f"--workdir={workdir}", f"--message_noise={noise}"])
        if noise == "-1":
            (line,) = capsys.readouterr().err.splitlines()
            assert code == 2 and "message_noise" in line and not workdir.exists()
            continue
        assert code == 0
        capsys.readouterr()
        summaries[noise] = json.loads((workdir / "summary.json").read_text())
    quiet, loud = summaries["0"], summaries["0.01"]
    assert quiet["bytes_sent_per_agent"] == loud["bytes_sent_per_agent"]
    assert loud["consensus_distance"] != quiet["consensus_distance"]
