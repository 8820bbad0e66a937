"""Who gets in: new connections are taken while there is room, and room is made when there is none.

At the limit, the connections that have sent nothing complete for the longest are ended. Where all
have just come or are being answered, new ones wait in the kernel's backlog, which costs a place
nothing. Several processes share the listening socket: whichever is first takes a connection.
"""

import heapq
import time
from typing import Final

from hookq import log
from hookq.ingest.clients import DRAIN_NEW_S, Clients
from hookq.ingest.connection import BODY, HEAD, IDLE, READING
from hookq.ingest.listener import Listener
from hookq.ingest.poll import IN, Poll
from hookq.ingest.routes import refusal

ACCEPTS: Final = 64  # connections taken in a turn, so that a burst does not starve the others
EVICT_S: Final = 1.0  # a connection is safe for so long before it may have to make room
EVICTED: Final = 32  # connections ended at once to make room


class Door:
    """The listening socket, and the limit of connections behind it."""

    def __init__(self, poll: Poll, listener: Listener, clients: Clients, most: int) -> None:
        self.poll, self.listener, self.clients, self.most = poll, listener, clients, most
        self.is_open = False
        self.crowded = False  # closed until somebody goes, or has been here for long enough
        clients.on_close = self._on_close

    def open(self, on: bool) -> None:
        """Take new connections from now on, or leave them in the backlog."""
        if on != self.is_open:
            self.is_open = on
            if on:
                self.poll.watch(self.listener.socket, IN, self._take)
            else:
                self.poll.forget(self.listener.socket)

    def close_socket(self) -> None:
        """Close the listening socket, once the connections that the kernel has made are taken: it
        would reset them.
        """
        before, connections = -1, self.clients.connections
        while before < len(connections) < self.most:
            before = len(connections)
            self._take()
        soon = time.monotonic() + DRAIN_NEW_S
        for c in connections:
            if c.quiet and c.state == HEAD:
                c.deadline = min(c.deadline, soon)
        self.listener.socket.close()

    def _take(self, _of: None = None, _events: int = 0) -> None:
        clients = self.clients
        for _ in range(ACCEPTS):
            if len(clients.connections) - clients.lingering >= self.most and not self._make_room():
                self.crowded = True
                self.open(False)
                return
            try:
                connection = self.listener.take()
            except OSError as error:  # the sweep tries again
                log.event("connections.exhausted", "error", error=error.strerror)
                self.open(False)
                return
            if connection is None:
                return
            clients.add(connection)

    def _make_room(self) -> bool:
        """End the connections that have sent nothing complete for the longest; 503 if a body had
        begun. Return whether there is room for another.
        """
        clients, before = self.clients, time.monotonic() - EVICT_S
        able = [c for c in clients.connections if c.since < before and c.state in (IDLE, *READING)]
        for c in heapq.nsmallest(EVICTED, able, key=lambda c: c.since):
            clients.tally.counters["evicted_connections"] += 1
            if c.state == BODY:
                c.buffer = b""
                clients.refuse(c, refusal("overloaded", "there are too many connections"))
            else:
                clients.close(c)
        return bool(able) and len(clients.connections) < 2 * self.most

    def _on_close(self) -> None:
        if self.crowded:
            self.crowded = False
            self.open(not self.clients.draining)
