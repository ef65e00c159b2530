"""Losses on features."""
