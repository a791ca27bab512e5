"""Requests that come one by one, answered in batches: one thread owns the model, a bounded queue stands before it."""

import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple


logger = logging.getLogger(__name__)


class QueueFullError(RuntimeError):
    """As many requests wait as may wait: try again later."""


class _Request(NamedTuple):
    group: Hashable
    work: Any
    future: Future


class Batcher:
    """
    Calls a function with several pieces of work at once.

    While a batch is computed, what comes in the meantime gathers in the queue and becomes the next batch, so nobody waits
    for a batch to fill. Pieces of one `group` may go together. A piece that makes a batch fail is found by computing the
    batch piece by piece, and fails alone.

    Args:
        compute (`Callable[[Hashable, Sequence], Sequence]`):
            From a group and pieces of work to as many results. Called from one thread only.
        max_batch_size (`int`, *optional*, defaults to `16`):
            Pieces in a batch at most.
        max_waiting (`int`, *optional*, defaults to `256`):
            Pieces that may wait; one more is refused.

    Example:
        ```python
        >>> with Batcher(lambda group, works: [work * 2 for work in works]) as batcher:
        ...     batcher.submit("all", 21).result()
        42

        ```
    """

    def __init__(
        self, compute: Callable[[Hashable, Sequence], Sequence], max_batch_size: int = 16, max_waiting: int = 256
    ) -> None:
        if max_batch_size < 1 or max_waiting < 1:
            raise ValueError(f"max_batch_size={max_batch_size}, max_waiting={max_waiting}: pass at least 1.")
        self._compute, self._max_batch_size = compute, max_batch_size
        self._waiting: queue.Queue[_Request | None] = queue.Queue(max_waiting)
        self._thread: threading.Thread | None = None
        self._lock, self._closed, self._stop = threading.Lock(), False, False

    def submit(self, group: Hashable, work: Any) -> Future:
        """
        Queue a piece of work.

        Raises:
            QueueFullError: as many wait as may wait.
            RuntimeError: the batcher is closed.
        """
        request = _Request(group, work, Future())
        with self._lock:
            if self._closed:
                raise RuntimeError("The batcher is closed: nothing is computed any more.")
            try:
                self._waiting.put_nowait(request)
            except queue.Full:
                raise QueueFullError(f"{self._waiting.maxsize} requests are waiting. Try again later.") from None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="trl-sdpo-batches", daemon=True)
                self._thread.start()
        return request.future

    @property
    def num_waiting(self) -> int:
        """Pieces that wait for their batch."""
        return self._waiting.qsize()

    def close(self) -> None:
        """Compute what waits, and take nothing more."""
        with self._lock:
            self._closed, thread = True, self._thread
        if thread is not None and thread.is_alive():
            self._waiting.put(None)
            thread.join()

    def __enter__(self) -> "Batcher":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            requests = self._next()
            # one that its caller gave up is not computed
            requests = [request for request in requests if request.future.set_running_or_notify_cancel()]
            groups: dict[Hashable, list[_Request]] = {}
            for request in requests:
                groups.setdefault(request.group, []).append(request)
            for group, members in groups.items():
                self._answer(group, members)
            if self._stop:
                return

    def _next(self) -> list[_Request]:
        """Waits for one request, and takes along what is there already."""
        first = self._waiting.get()
        requests = []
        while first is not None:
            requests.append(first)
            if len(requests) == self._max_batch_size:
                return requests
            try:
                first = self._waiting.get_nowait()
            except queue.Empty:
                return requests
        self._stop = True
        return requests

    def _answer(self, group: Hashable, requests: list[_Request]) -> None:
        try:
            results = self._compute(group, [request.work for request in requests])
            answers = list(zip(requests, results, strict=True))
        except BaseException as cause:
            # this thread has nobody to tell but those who wait, and what would end it must not end them
            error = cause if isinstance(cause, Exception) else RuntimeError(f"The computation ended with {cause!r}.")
            if len(requests) == 1:
                _settle(requests[0].future, error=error)
                return
            logger.warning("A batch of %d failed (%s); its requests are computed one by one.", len(requests), error)
            for request in requests:
                self._answer(group, [request])
            return
        for request, result in answers:
            _settle(request.future, result)


def _settle(future: Future, result: Any = None, error: BaseException | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
