"""How a fault nobody foresaw is logged: what and where, never with the values that were at hand (prompts, keys)."""

import traceback


def where(error: BaseException) -> str:
    """The error's type and the places it passed, innermost last; not its message, which may quote a prompt."""
    frames = traceback.extract_tb(error.__traceback__)
    places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
    return " < ".join([type(error).__name__, *reversed(places)])
