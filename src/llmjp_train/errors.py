"""The error that a user can act on."""


class UserError(ValueError):
    """Bad input: says which value of which key or file was wrong, and what to do next.

    The command line prints it without a traceback and exits with `exit_codes.BAD_INPUT`.
    """
