"""Probes, metrics, figures and the report: takes batches and encoders, knows no loader."""
