"""What an ingest will take, measured before it begins."""
