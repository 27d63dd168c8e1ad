"""What particular archives have of their own, for their files in `ingest.sources`."""
