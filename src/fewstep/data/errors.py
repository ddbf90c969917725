"""What is raised where a data set will not do."""


class DataError(ValueError):
    """A data set that is missing or not what it should be; the message says which and what to change."""
