"""Runs: settings, data and methods put together, and the directory that a run leaves behind."""
