"""Trains decentralized agents on Imagenette, at 32x32 pixels.

python -m experiments.imagenette --data_dir=DIR --topology=ring --alpha=0.1 --lambda_m=0.1 --lambda_d=0.1

DIR holds imagenette2/ (or its 320 or 160 pixel version), or is that folder, or holds the set as
`experiments.prepare` makes it. At full size, streamed from disk and 224x224 pixels to the model:

python -m experiments.imagenette --dataset=imagenette-full --model=resnet18 --data_dir=DIR

A folder of your own, with train/<class>/ and val/<class>/ or with <class>/ only, goes by
--dataset=folder or folder-full; a folder of domains, each with the same classes, by
--dataset=folder --domain=folder:PATH.
"""

import sys

from ccl_jax.runs import runner
from ccl_jax.runs.config import Config
from experiments import cli

# As published (arXiv:2310.15890, authors' code), as is the learning rate of 0.1 for 200 epochs.
DEFAULTS = Config(dataset="imagenette", model="mobilenetv2", augment="resized-crop-flip")

if __name__ == "__main__":
    sys.exit(cli.run_main(runner.main, DEFAULTS, __doc__))
