"""The error that unusable data raises."""


class DataError(ValueError):
    """Raised for a data set that is missing or invalid; the message says which data set it is, and what to change."""
