"""The listening socket: http.server's HTTPServer for its life, without the rest of it.

BaseHTTPRequestHandler parses leniently (two Content-Lengths, bare CR, a body by Transfer-Encoding:
each a way to smuggle a request), waits without an absolute limit, answers errors so that senders do
not get to read them, and wants a thread for each connection. clients.py replaces it.
"""

import http.server
import socket
import time

from hookq.ingest.connection import Connection


class Listener(http.server.HTTPServer):
    """Listens on `address`, or on the socket that was inherited: from supervisord, or from the
    program that this one was before a reload.
    """

    request_queue_size = 1024  # a burst of connects waits here; the default of 5 refused 46 of 100
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], inherited: socket.socket | None = None) -> None:
        handler = http.server.BaseHTTPRequestHandler
        super().__init__(address, handler, bind_and_activate=False)
        if inherited:
            self.socket.close()
            self.socket = inherited
        else:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Not server_bind(): that asks DNS for our name, which can take a minute.
            self.socket.bind(address)
            self.server_activate()
        # Shared with other processes: one of them may have taken the connection already.
        self.socket.setblocking(False)

    def take(self) -> Connection | None:
        """Return the next connection, None if there is none. Raises OSError when the process is out
        of files or memory: what waits stays in the backlog.
        """
        try:
            sock, address = self.socket.accept()
        except (BlockingIOError, ConnectionError):
            return None
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock, address[0], time.monotonic())

    @property
    def closed(self) -> bool:
        return self.socket.fileno() < 0
