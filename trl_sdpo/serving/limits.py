"""Limits of a request: how large it may be and how long it may take, whatever the client does."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class _TooLargeError(Exception):
    pass


class RequestLimits:
    """
    ASGI middleware: a body above `max_bytes` is answered with 413, whether or not its length was announced, and a request
    that is not answered within `timeout` seconds, its body included, with 504.
    """

    def __init__(self, app: Callable, max_bytes: int, timeout: float) -> None:
        self.app, self.max_bytes, self.timeout = app, max_bytes, timeout

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request within the limits."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        size = int(announced) if announced.isdigit() else 0
        read, started = 0, False

        async def counted() -> Message:
            nonlocal size, read
            message = await receive()
            read += len(message.get("body", b""))
            size = max(size, read)
            if size > self.max_bytes:
                raise _TooLargeError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            # the application takes the error of `counted` for a broken body, and would say so
            if size <= self.max_bytes:
                started = True
                await send(message)

        try:
            if size <= self.max_bytes:
                async with asyncio.timeout(self.timeout):
                    await self.app(scope, counted, noted)
        except TimeoutError:
            if not started:
                await _answer(send, 504, f"No answer within {self.timeout:g} s. Ask for less, or try again later.")
            return
        except _TooLargeError:
            pass  # said below
        if size > self.max_bytes and not started:
            await _answer(send, 413, f"The body is larger than {self.max_bytes} bytes.")


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"field": None, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # what was not read of the body is not taken for the next request
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
