"""Random streams: which numbers belong to which purpose, and that no two share any."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ccl_jax.randomness import Stream, check_seed, generator, step_key


def test_the_numbers_of_the_purposes_stay():
    """They are part of every recorded result."""
    assert {stream.name: stream.value for stream in Stream} == {
        "PARTITION": 1,
        "BATCHES": 2,
        "AUGMENTATION": 3,
        "FAULTS": 4,
        "HETEROGENEITY": 5,
        "HOLD_OUT": 6,
        "TAKE": 7,
        "EXCHANGES": 8,
        "NOISE": 9,
    }


def test_a_generator_is_numpys_of_seed_purpose_and_path():
    sequence = np.random.SeedSequence(entropy=7, spawn_key=(2, 3, 1))
    expected = np.random.Generator(np.random.PCG64(sequence)).integers(1 << 60, size=9)
    found = generator(Stream.BATCHES, 7, 3, 1).integers(1 << 60, size=9)
    np.testing.assert_array_equal(found, expected)


def test_no_two_purposes_seeds_or_paths_share_numbers():
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0)]
    first = [
        generator(stream, seed, *path).integers(1 << 62)
        for stream in Stream
        for seed in (0, 1, 2**32 - 1)
        for path in paths
    ]
    assert len(set(first)) == len(Stream) * 3 * len(paths)


def test_a_key_is_that_of_purpose_and_step():
    key = jax.random.key(5)
    data = lambda key: tuple(jax.random.key_data(key).tolist())
    found = data(jax.jit(lambda t: step_key(key, Stream.FAULTS, t))(jnp.int32(11)))
    assert found == data(jax.random.fold_in(jax.random.fold_in(key, 4), 11))
    keys = {data(step_key(key, stream, jnp.int32(t))) for stream in Stream for t in range(8)}
    assert len(keys) == 8 * len(Stream) and data(key) not in keys


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=rf"0 to 2\*\*32 - 1, got {seed}: choose another"):
        check_seed(seed)
    with pytest.raises(ValueError, match="seed"):
        generator(Stream.PARTITION, seed)
