"""A peer of ingestion: Starlette under uvicorn, with redis.asyncio (and hiredis, which it finds by
itself).

    uvicorn starlette_app:app --loop uvloop --http httptools --no-access-log  (REDIS_SOCKET, SECRET)

As their documents advise: uvloop and httptools, no access log, one client for the life of the
process, whose pool has a connection for each request under way (its own limit of 100 answers 500
when more come). What it does not do: deduplicate, bound the body, count, spool while Redis is away.
"""

import hashlib
import hmac
import os

import redis.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

SECRET = os.environ["SECRET"].encode()
CLIENT = redis.asyncio.Redis(unix_socket_path=os.environ["REDIS_SOCKET"], max_connections=1000)


async def receive(request: Request) -> JSONResponse:
    body = await request.body()
    expected = "sha256=" + hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, request.headers.get("x-hub-signature-256", "")):
        return JSONResponse({"status": "rejected"}, 401)
    id = request.headers["x-github-delivery"]
    await CLIENT.xadd("jobs", {"id": id, "body": body})
    return JSONResponse({"status": "accepted", "id": id}, 202)


app = Starlette(routes=[Route("/api/webhooks/github", receive, methods=["POST"])])
