"""Sweeps from settings to a table, a doctor, and task files for clouds."""
