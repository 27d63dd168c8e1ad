"""Shards to batches of augmented multispectral views; order and draws are data."""
