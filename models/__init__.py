"""Encoders, heads, objectives and export; knows nothing of files or loaders."""
