"""A made-up Sentinel-2 archive that is a real task."""
