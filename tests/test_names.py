"""Names that are looked up: what is there, and what is said where it is not."""

import pytest

from ccl_jax.names import look_up, nearest

TABLE = {"ring": 1, "torus": 2, "random-regular": 3}


def test_finds_what_is_there():
    assert [look_up("graph", name, TABLE) for name in TABLE] == [1, 2, 3]


@pytest.mark.parametrize(
    "wrong, meant",
    [("rnig", "ring"), ("Torus", "torus"), ("random_regular", "random-regular")],
)
def test_names_the_nearest_and_all_in_one_line(wrong, meant):
    with pytest.raises(ValueError) as error:
        look_up("graph", wrong, TABLE)
    assert str(error.value) == (
        f"unknown graph {wrong!r}: did you mean {meant!r}? Known: ring, torus, random-regular."
    )


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("epoch", "epochs"),
        ("Epochs", "epochs"),
        ("learning_rate", "lr"),
        ("learning-rate", "lr"),
        ("rate", None),
        ("learn", None),
        ("run", None),
        ("", None),
        ("zzz", None),
    ],
)
def test_a_name_that_was_likely_meant(wrong, meant):
    known = {
        "epochs": "passes over the data",
        "lr": "learning rate at its highest",
        "extension": "run this file first",
    }
    assert nearest(wrong, known) == meant


def test_no_name_is_answered_too():
    with pytest.raises(ValueError, match=r"unknown graph '': did you mean .* Known: ring, torus,"):
        look_up("graph", "", TABLE)


def test_an_entry_that_is_false_is_found():
    assert look_up("compression", "none", {"none": None, "sign": 1}) is None
