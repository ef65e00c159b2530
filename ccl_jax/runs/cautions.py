"""What is known to go wrong, often enough to be said before it does: see docs/method.md."""

from ccl_jax import algorithms
from ccl_jax.runs.config import Config

# From here on the model-variant loss, as squared error, has run away where nothing is normalised, on a
# ring of 16 agents, alpha 0.01, quasi-global momentum (the study `stability`): LeNet-5 on Fashion-MNIST
# at learning rates 0.01 to 0.1 (at lambda_m 0.01 at 0.3, and in long runs at 0.1); the digits
# network at 0.03 to 0.3 (at lambda_m 0.1 no run did).
UNSTABLE_LAMBDA_M = {"lenet5": 0.1, "digits-cnn": 1.0}

# With RelaySGD, both of LeNet-5's losses have at learning rates 0.03 to 0.3, alpha 0.1 and 0.01 (the
# study `main_table`); L_dv alone too (single runs, 0.1 and 0.3). Its models are averages of old ones,
# and behind those that neighbours send.
UNSTABLE_RELAYED_LAMBDA = 0.01

# What top-k leaves out comes back through the correction of D2 and its kin. On quadratics of 1000
# numbers (ring of 16, 1500 steps, learning rate 0.02), top-k:0.1 diverged at all gossip rates, 0.03 to
# 0.15; with top-k:0.3 EDM diverged at 0.6 to 0.9, and none did at 0.09 to 0.5. LED, which corrects half,
# did not at 0.03 to 0.45. On digits the models of exact diffusion and NIDS ended 40 and 300 times as far
# apart with top-k:0.1 as without (disagreement 21.04 to 0.530, 11.05 to 0.0351), and 1.2 and 2.8 times
# with top-k:0.3, by `experiments.digits --agents=16 --epochs=10 --lr=0.1` (two cores of an AMD EPYC,
# 2026-11-27).
CORRECTED = ("d2", "ed", "edm", "exact-diffusion", "nids")
CORRECTED_FRACTION, CORRECTED_RATE = 0.3, 0.5


def of(config: Config) -> list[str]:
    """The cautions for a run with these settings, one line each."""
    return [*_of_compression(config), *_of_losses(config), *_of_weight_decay(config)]


def _of_compression(config: Config) -> list[str]:
    kind, _, fraction = config.compression.partition(":")
    if kind != "top-k" or config.algorithm not in CORRECTED:
        return []
    method = algorithms.get(config.algorithm)
    given = method.hyperparameters | method.fixed | config.hyperparameters()
    if "gossip_rate" not in given:
        if float(fraction) >= CORRECTED_FRACTION:
            return []
        return [
            f"{config.algorithm} corrects the whole bias of gossip, and its models have been seen to "
            f"end far apart where top-k keeps little; take top-k:{CORRECTED_FRACTION:g} or more, or led "
            "or beer."
        ]
    rate = given["gossip_rate"]
    largest = CORRECTED_RATE / CORRECTED_FRACTION * float(fraction)
    if float(fraction) >= CORRECTED_FRACTION and not callable(rate) and rate <= largest:
        return []
    times = f"{CORRECTED_RATE / CORRECTED_FRACTION:.2g} times the fraction"
    return [
        f"{config.algorithm} corrects the whole bias of gossip, and has been seen to diverge where "
        "top-k keeps little or the gossip rate is large; take "
        f"top-k:{CORRECTED_FRACTION:g} or more and a gossip rate of at most {times}, or led or beer."
    ]


def _of_losses(config: Config) -> list[str]:
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


def _of_weight_decay(config: Config) -> list[str]:
    if (shrunk := config.lr * (config.weight_decay or 0)) < 1:
        return []
    return [
        f"weight_decay {config.weight_decay:g} times lr {config.lr:g} is {shrunk:.2g}: a step takes "
        "more from every weight than there is of it, and the run will likely diverge; take a "
        f"weight_decay far below {1 / config.lr:.2g}."
    ]
