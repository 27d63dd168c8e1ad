"""The one exception that is meant for a person's eyes."""


class BandstreamError(Exception):
    """Failed work, told in one line: what is wrong, where, and what to do about it."""
