"""Slow, obvious float64 twins of the numerical routines, written from the formulas."""
