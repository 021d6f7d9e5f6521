"""What means "the user can fix this": one clear message, exit code 2."""


class UserError(Exception):
    """A mistake in what the user gave; the message says what was given, what is allowed, what to
    change.
    """


class NonFiniteAnswers(UserError):
    """A model's answers to some rows are no numbers: a score of all of them would hide it."""
