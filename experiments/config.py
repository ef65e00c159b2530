"""`ccl_jax.runs.config`, for mains of one's own that import it from here."""

from ccl_jax.runs.config import Config

__all__ = ["Config"]
