"""A service that deliveries are passed on to: it verifies the signature, does its work once for
each id, and says so.

WEBHOOK_SECRET=… python examples/forward/service.py [PORT]
"""

import base64
import hashlib
import hmac
import http.server
import os
import sys
import time

SECRET = os.environ["WEBHOOK_SECRET"].encode()
seen = set()


class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # so that connections are kept

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        id, stamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        signed = f"{id}.{stamp}.".encode() + body
        right = "v1," + base64.b64encode(hmac.digest(SECRET, signed, "sha256")).decode()
        good = (
            hmac.compare_digest(self.headers["webhook-signature"].encode(), right.encode())
            and abs(time.time() - int(stamp)) < 300
        )
        if good and id not in seen:
            seen.add(id)
            print(
                self.headers["X-GitHub-Event"], hashlib.sha256(body).hexdigest(), flush=True
            )  # yours: the work
        self.send_response(200 if good else 401)
        self.send_header(
            "Content-Length", "0"
        )  # without it, an answer only ends with the connection
        self.end_headers()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    http.server.ThreadingHTTPServer(
        ("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 7100), Service
    ).serve_forever()
