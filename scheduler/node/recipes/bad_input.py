"""The refusal of what a firm brought, with file and line."""

from kit.errors import InvalidInput


class BadInput(InvalidInput):
    """An input that a recipe cannot use; the message names the line."""

    default_code = "bad_input"
