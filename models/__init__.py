"""Encoders, heads, objectives and export; knows nothing of files or loaders."""

from typing import Any


def __getattr__(name: str) -> Any:
    """`models.load_encoder`, imported when it is first asked for: importing a room must not import torch."""
    if name == "load_encoder":
        from models.export import load_encoder

        return load_encoder
    raise AttributeError(f"module 'models' has no attribute {name!r}")
