"""Figures of sweeps: tables of scores in, pictures out."""
