"""Runs to look at: one page of curves and pictures."""
