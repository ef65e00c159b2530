"""A study of two cells, and records that are made up for it."""

from experiments.study import catalogue

STUDY = """
title = "A <small> study"
claim = "It helps."
question = "Does it?"
seeds = [0, 1, 2]
target = 0.8
reference = "plain"
[axes.alpha]
"alpha 0.1" = { alpha = 0.1 }
"alpha 1" = { alpha = 1.0 }
[methods]
"plain" = {}
"ccl" = { lambda_m = 0.1 }
"both" = { lambda_m = 0.1, lambda_d = 1.0 }
"far" = { lambda_d = 1.0 }
[against]
"both" = "ccl"
[[figures]]
kind = "dots"
[[figures]]
kind = "lines"
x = "alpha"
log = true
[[figures]]
kind = "heatmap"
x = "lambda_d"
y = "lambda_m"
difference = true
[[figures]]
kind = "scatter"
title = "Against divergence"
x = "label_divergence"
y = "consensus_accuracy"
[data.digits]
"""


def made_up(job):
    """A record: `ccl` is 2 points better in every seed, `far` diverges at alpha 1 with seed 1."""
    seed, alpha = job.config.seed, job.config.alpha
    accuracy = 0.8 + 0.01 * seed + (0.02 if job.method == "ccl" else 0) + 0.001 * seed * alpha
    lost = job.method == "far" and seed == 1 and alpha == 1
    steps = [12, 24]
    return {
        "id": job.identity,
        "settings": catalogue.settings_of(job.config),
        "seed": seed,
        "status": "diverged" if lost else "done",
        **({"step": 17, "reason": "the loss is <b>no</b> longer finite"} if lost else {}),
        "summary": {
            "bytes_sent_per_agent": 2_500_000,
            "label_divergence": 1 - alpha / 2,
            "seconds_training": 60.0,
            **({} if lost else dict.fromkeys(catalogue.METRICS, accuracy)),
            **({} if lost else {f"local_accuracy_{k}": accuracy - 0.1 for k in ("min", "max")}),
        },
        "rows": {
            "step": steps,
            "bytes_sent_per_agent_max": [1_000_000, 2_500_000],
            "consensus_accuracy": [0.5, None if lost else accuracy],
        },
        "cost": {"flops": 1e9, "exchanges": 1},
        "samples_by_agent_and_class": [[4, 0], [0, int(4 * alpha)]],
        "made_with": {"python": "3.11", "jax": "1.2", "device": "a <chip>", "date": "2026-01-02"}
        | {"git_commit": None},
    }
