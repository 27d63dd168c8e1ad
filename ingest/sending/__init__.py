"""Shard sets to object stores."""
