"""What is known to go wrong, often enough to be said before it does: see docs/method.md."""

from ccl_jax.runs.config import Config

# From here on the model-variant loss, as squared error, has run away where nothing is normalised, on a
# ring of 16 agents, alpha 0.01, quasi-global momentum (the study `stability`): LeNet-5 on Fashion-MNIST
# at learning rates 0.01 to 0.1 (at lambda_m 0.01 only at 0.3); the digits network at 0.03 to 0.3 (at
# lambda_m 0.1 no run did).
UNSTABLE_LAMBDA_M = {"lenet5": 0.1, "digits-cnn": 1.0}

# With RelaySGD, both of LeNet-5's losses have at learning rates 0.03 to 0.3, alpha 0.1 and 0.01 (the
# study `main_table`); L_dv alone too (single runs, 0.1 and 0.3). Its models are averages of old ones,
# and behind those that neighbours send.
UNSTABLE_RELAYED_LAMBDA = 0.01


def of(config: Config) -> list[str]:
    """The cautions for a run with these settings, one line each."""
    normless = config.norm == "none" or (config.norm is None and config.model == "lenet5")
    if not normless or config.distance != "mse":
        return []
    if config.algorithm == "relaysgd" and config.model != "digits-cnn":
        if max(config.lambda_m, config.lambda_d) < UNSTABLE_RELAYED_LAMBDA:
            return []
        return [
            f"{config.model} has no normalisation: with RelaySGD, CCL's losses have been seen to run "
            f"away in such networks from lambda {UNSTABLE_RELAYED_LAMBDA:g} on; take another "
            "--algorithm, a network with normalisation, or --distance=huber."
        ]
    from_here = UNSTABLE_LAMBDA_M.get(config.model, min(UNSTABLE_LAMBDA_M.values()))
    if config.lambda_m < from_here:
        return []
    return [
        f"{config.model} has no normalisation, and lambda_m is {config.lambda_m:g}: from "
        f"{from_here:g} on, the model-variant loss has been seen to run away in such networks; take "
        f"{from_here / 10:g}, another --distance (huber, cosine), or a network with normalisation."
    ]
