"""Devices: the same step over many devices and hosts."""
