"""Nothing in a healthy run is NaN, not even what stands for a number that was not computed."""

import jax
import pytest

from tests.support import tiny_main

QUICK = ("--epochs=2", "--batch_size=64", "--nofigures", "--checkpoint_minutes=0", "--devices=1")


@pytest.mark.parametrize(
    "flags",
    [
        ["--algorithm=dsgd"],
        ["--algorithm=dsgd", "--on_divergence=skip", "--feature_loss=prototype:0.1"],
        ["--algorithm=qg-dsgdm-n", "--lambda_m=0.1", "--lambda_d=0.1", "--compression=sign"],
        ["--algorithm=isolated", "--measure_heterogeneity", "--local_steps=2"],
        ["--algorithm=dsgdm-n", "--drop=0.5", "--offline=0.5:2", "--straggle=0.5:2"],
        ["--algorithm=sgp", "--topology=exponential", "--distance=cosine", "--lambda_m=0.1"],
    ],
    ids=" ".join,
)
def test_a_healthy_run_makes_no_nan(flags, tmp_path, capsys):
    with jax.debug_nans(True):
        code = tiny_main.main(["tiny_main", *QUICK, *flags, f"--workdir={tmp_path / 'run'}"])
    assert (code, capsys.readouterr().err) == (0, "")
