"""Trains decentralized agents on ImageNet, streamed from disk.

python -m experiments.imagenet --data_dir=DIR --topology=ring --alpha=0.1 --lambda_m=0.1 --lambda_d=0.1

DIR has train/<class>/ and val/<class>/, or the set as `experiments.prepare` makes it. --workers threads
decode ahead of the step; metrics.jsonl tells images_per_second beside seconds_per_step.
"""

import sys

from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from experiments import cli

# Model and augmentation as published (arXiv:2310.15890); what else the authors' code has no default for
# is as for their other sets.
DEFAULTS = Config(dataset="imagenet", model="resnet18", augment="resized-crop-flip")

if __name__ == "__main__":
    sys.exit(cli.run_main(runner.main, DEFAULTS, __doc__))
