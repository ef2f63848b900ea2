"""Heliu (合流): the typed client (`heliu.Client`) and the `heliu` command."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from heliu.client import ApiError as ApiError
    from heliu.client import AwaitsApproval as AwaitsApproval
    from heliu.client import Client as Client
    from heliu.client import Unreachable as Unreachable

__all__ = ["ApiError", "AwaitsApproval", "Client", "Unreachable"]


def __getattr__(name: str) -> Any:
    """Load the client when it is asked for: the processes of the platform start without it."""
    if name not in __all__:
        raise AttributeError(f"module 'heliu' has no attribute {name!r}")
    from heliu import client

    return getattr(client, name)
