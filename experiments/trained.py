"""Flags that `predict` and `export` share: which run, which checkpoint, whose model."""

from absl import flags

from ccl_jax.runs.loading import LoadedRun, load_run
from experiments.flag_values import FlagValues

CONSENSUS, ALL = "consensus", "all"


def define(whose: str) -> FlagValues:
    """The flags that both have.

    Args:
      whose: What `--agent` may be, for its help.
    """
    values = FlagValues()
    flags.DEFINE_bool("help", False, "show this help", short_name="h", flag_values=values)
    flags.DEFINE_string("run", None, "run directory", flag_values=values)
    flags.DEFINE_string("checkpoint", "last", "last, best or a step", flag_values=values)
    flags.DEFINE_string("agent", CONSENSUS, f"whose model: {whose}", flag_values=values)
    return values


def load(values: FlagValues) -> LoadedRun:
    """The run that the flags name.

    Raises:
      ValueError: There is none, or it cannot be loaded.
    """
    if values["run"].value is None:
        raise ValueError("give --run=DIR, the directory of a run; --help tells more")
    return load_run(values["run"].value, values["checkpoint"].value)


def agent(values: FlagValues, run: LoadedRun) -> int | None:
    """The agent that the flags name; None for the consensus model.

    Raises:
      ValueError: It is no agent of the run.
    """
    text = values["agent"].value
    if text == CONSENSUS:
        return None
    if not text.isdecimal() or int(text) >= run.config.agents:
        raise ValueError(
            f"agent is {text!r}; give {CONSENSUS} or 0 to {run.config.agents - 1}, an agent of "
            f"{run.directory}"
        )
    return int(text)
