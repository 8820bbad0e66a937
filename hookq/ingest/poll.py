"""One epoll, and who is called for which socket. `wake` ends a wait from a thread or a signal.

`selectors` would do the same for half a microsecond more of each request.
"""

import select
import socket
from collections.abc import Callable
from typing import Any, Final

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR

Ready = Callable[[Any, int], None]  # is called with what was given to `watch`, and the events


class Poll:
    """The sockets that are watched."""

    def __init__(self, on_wake: Callable[[], None]) -> None:
        self.epoll = select.epoll()
        self.watched: dict[int, tuple[Ready, Any]] = {}
        self.on_wake = on_wake
        self.waker, self.woken = socket.socketpair()
        self.woken.setblocking(False)
        self.waker.setblocking(False)
        self.watch(self.woken, IN, self._on_woken)

    def watch(self, sock: socket.socket, events: int, ready: Ready, of: Any = None) -> None:
        """Call ready(of, events) whenever one of `events` has happened to this socket."""
        self.epoll.register(sock, events)
        self.watched[sock.fileno()] = ready, of

    def want(
        self, sock: socket.socket, before: int, events: int, ready: Ready, of: Any = None
    ) -> None:
        """Watch for `events` where `before` were watched for; 0 is for none."""
        if not before:
            self.watch(sock, events, ready, of)
        elif not events:
            self.forget(sock)
        else:
            self.epoll.modify(sock, events)

    def forget(self, sock: socket.socket) -> None:
        del self.watched[sock.fileno()]
        self.epoll.unregister(sock)

    def turn(self, wait_s: float) -> None:
        """Wait for at most so long, and call whoever has something."""
        for fd, events in self.epoll.poll(wait_s):
            watched = self.watched.get(fd)
            if watched:  # else it was given up earlier in this turn
                watched[0](watched[1], events)

    def wake(self) -> None:
        """End a wait. Called from signal handlers and other threads, so it never blocks."""
        try:
            self.waker.send(b"!")
        except OSError:
            pass

    def close(self) -> None:
        for one in (self.waker, self.woken, self.epoll):
            one.close()

    def _on_woken(self, _of: None, _events: int) -> None:
        self.woken.recv(4096)
        self.on_wake()
