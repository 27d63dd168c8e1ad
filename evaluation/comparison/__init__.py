"""Comparisons: encoders by protocols by label fractions by seeds, as `bandstream compare` makes them (see compare.py)."""
