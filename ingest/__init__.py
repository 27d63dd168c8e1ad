"""Archives to shards."""
