"""Shard sets under a URL: what reads them, with patience, and the local copies of their files."""
