"""`ccl_jax.runs.runner`, for mains of one's own that import it from here."""

from ccl_jax.runs.runner import Run, execute, main, new_workdir, prepare

__all__ = ["Run", "execute", "main", "new_workdir", "prepare"]
