"""A peer of ingestion: the standard library's own server, as its documents show it, with one Redis
command.

    stock.py PORT REDIS_SOCKET SECRET

A thread for each connection, HTTP/1.1 keep-alive, the same HMAC check, one XADD per request. What
it does not do: deduplicate, bound anything, refuse what RFC 9112 calls invalid, count, spool while
Redis is away, drain.
"""

import hashlib
import hmac
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import redis

PORT, PATH, SECRET = int(sys.argv[1]), sys.argv[2], sys.argv[3].encode()
CLIENT = redis.Redis(unix_socket_path=PATH)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet for an answer, not one for each line of it

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
        good = hmac.compare_digest(expected, self.headers.get("X-Hub-Signature-256", ""))
        if good:
            CLIENT.xadd("jobs", {"id": self.headers["X-GitHub-Delivery"], "body": body})
        answer = b'{"status": "accepted"}' if good else b'{"status": "rejected"}'
        self.send_response(202 if good else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 1024


Server(("127.0.0.1", PORT), Handler).serve_forever()
