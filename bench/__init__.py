"""Throughput of every stage, beside what users would otherwise run on the same work."""
