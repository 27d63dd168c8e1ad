"""The report: runs, studies and comparisons as one HTML page that needs nothing beside it."""
