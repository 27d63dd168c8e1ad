"""Out-of-distribution detection. In all of this room a score is higher where a sample is more out of distribution."""
