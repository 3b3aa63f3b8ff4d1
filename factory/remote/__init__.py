"""A factory elsewhere: the Python client of its JSON API, with the documents and the errors of a call in-process.

::

    with factory.Client("https://factory.example.com", token) as client:
        request = client.submit({"team": "growth", "name": "churn", "recipe": "tabular-auto", "dataset": {...}})
        print(client.wait(request.id).state)
"""

from __future__ import annotations

from factory.remote.batches import BatchCalls
from factory.remote.catalog import CatalogCalls
from factory.remote.credentials import Login, find_login, forget_login, read_login, write_login
from factory.remote.datasets import DatasetCalls
from factory.remote.requests import RequestCalls
from factory.remote.teams import TeamCalls

__all__ = ["Client", "Login", "find_login", "forget_login", "read_login", "write_login"]


class Client(RequestCalls, DatasetCalls, CatalogCalls, BatchCalls, TeamCalls):
    """A factory's API; a context manager that closes its connections. May be used by several threads.

    Args:
        url: Address of the portal; that of ``FACTORY_URL``, or of ``factory login``, where not given.
        token: Likewise, of ``FACTORY_TOKEN``.
        timeout_s: Seconds for an answer.
        retries: How often a call is repeated where that is safe.
        transport: What speaks HTTP, for tests and unusual networks.

    Raises:
        InvalidRequest: nothing names a factory, or what does is no address.
    """
