"""`from heliu import Client`."""

from heliu.client.client import Client as Client
from heliu.client.transport import ApiError as ApiError
from heliu.client.transport import AwaitsApproval as AwaitsApproval
from heliu.client.transport import Unreachable as Unreachable
