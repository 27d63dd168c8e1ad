"""Comparisons, as compare.py makes them: encoders by protocols by label fractions by seeds."""
