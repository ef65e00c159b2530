"""Checksums of the files of a user's own that have a part in a run."""

import hashlib

from ccl_jax import algorithms, losses
from ccl_jax.runs import own_code
from ccl_jax.runs.config import Config
from experiments import extensions

METHOD = """
from ccl_jax import algorithms
algorithms.register("mine", summary="-", reference="-")(lambda: algorithms.make("dsgd"))
"""
LOSS = """
from ccl_jax import losses
losses.register("mine", summary="-", reference="-")(lambda own, heard, distance: 0.0)
"""


def test_what_is_ours_has_none():
    assert own_code.checksums(Config(topology="alternating:ring+star", lambda_m=0.1)) == {}


def test_two_files_of_one_name(tmp_path, monkeypatch):
    monkeypatch.setattr(extensions, "LOADED", [])
    for module in (algorithms.base, losses.base):
        monkeypatch.setattr(module, "REGISTRY", dict(module.REGISTRY))
    for folder, text in (("a", METHOD), ("b", LOSS)):
        (tmp_path / folder).mkdir()
        file = tmp_path / folder / "mine.py"
        file.write_text(text)
        extensions.load(str(file))
    config = Config(algorithm="mine", feature_loss=("mine:1",))
    assert own_code.checksums(config) == {
        f"{folder}/mine.py": hashlib.sha256(text.encode()).hexdigest()[:12]
        for folder, text in (("a", METHOD), ("b", LOSS))
    }
    alone = own_code.checksums(config.replace(feature_loss=()))
    assert alone == {"mine.py": hashlib.sha256(METHOD.encode()).hexdigest()[:12]}
