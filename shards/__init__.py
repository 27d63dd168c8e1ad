"""The contract between ingest and everything else: manifest, bands, byte layout, catalogue, verify."""
