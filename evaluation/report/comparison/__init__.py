"""What the report shows of a comparison: its table, curves, classes, confusions, examples, studies and figures."""
