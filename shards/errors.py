"""The exceptions that are meant for a person's eyes."""


class BandstreamError(Exception):
    """Failed work, told in one line: what is wrong, where, and what to do about it."""

    exit_code = 1


class WrongUsage(BandstreamError):
    """A recipe, or options, that cannot be meant as they stand."""

    exit_code = 2
