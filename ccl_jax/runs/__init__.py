"""Runs: from settings to a trained model and the directory that tells of it."""
