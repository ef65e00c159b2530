"""Replays of runs that were recorded from the code of others."""
