"""A small study on digits, and records as its runs would give."""

from experiments.study import catalogue

SMALL = """
title = "small"
seeds = [0, 1]
[methods]
"plain" = { algorithm = "dsgdm-n" }
"ccl" = { algorithm = "dsgdm-n", lambda_m = 0.1, lambda_d = 0.1 }
[data.digits.settings]
model = "mlp"
agents = 3
alpha = 1.0
epochs = 2
eval_every = 1
batch_size = 64
devices = 1
"""


def fake_record(config):
    """What a run would give whose accuracy is best at a learning rate of 0.1, in seed 9."""
    accuracy = 0.9 - abs(config.lr - 0.1) - 0.01 * config.seed
    accuracies = dict.fromkeys(catalogue.METRICS, accuracy)
    return {
        "id": catalogue.identity(config),
        "settings": catalogue.settings_of(config),
        "seed": config.seed,
        "status": "diverged" if config.lr > 1 else "done",
        "step": 3,
        "summary": accuracies,
    }
