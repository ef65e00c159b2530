import sys

from experiments.parity.command import main

if __name__ == "__main__":
    sys.exit(main())
