"""One file a dataset: list what there is, read one sample."""
