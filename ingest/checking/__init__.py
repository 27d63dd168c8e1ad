"""What may be asked of a finished set: what is in it, what is damaged, what it holds twice."""
