"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A problem with the input, the files or the options; its message says what to do about it."""
