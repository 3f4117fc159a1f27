"""Web applications served on loopback by a thread, to be asked through real HTTP."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx

__all__ = ["django_site", "serve_asgi", "serve_wsgi"]


@contextmanager
def serve_asgi(application: Any, *, lifespan: str = "auto") -> Iterator[httpx.Client]:
    """Serve under uvicorn, and give a client of it."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, lifespan=lifespan, log_level="warning")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while thread.is_alive() and not server.started:
            time.sleep(0.01)
        with _client(listener.getsockname()[1]) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextmanager
def serve_wsgi(application: Any) -> Iterator[httpx.Client]:
    """Serve under Werkzeug's server, a thread for each request, and give a client of it."""
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        with _client(server.server_port) as client:
            yield client
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def django_site(urlpatterns: list[Any]) -> tuple[Any, Any]:
    """Return the ASGI and the WSGI application of these URLs, where a header names the user.

    It configures Django, which a process can do once.
    """
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.core.handlers.wsgi import WSGIHandler

    settings.configure(
        SECRET_KEY="live",
        ROOT_URLCONF=tuple(urlpatterns),
        ALLOWED_HOSTS=["*"],
        MIDDLEWARE=[f"{__name__}._UserByHeader"],
    )
    return ASGIHandler(), WSGIHandler()


class _UserByHeader:
    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        from asgiref.sync import iscoroutinefunction, markcoroutinefunction

        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        name = request.headers.get("X-User")
        request.user = SimpleNamespace(id=int(name) if name else None)
        return self._get_response(request)


def _client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)
