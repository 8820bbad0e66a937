// A peer of ingestion: Express, with ioredis and its auto-pipelining. `express.js PORT REDIS_SOCKET SECRET`
//
// As its documents advise: NODE_ENV=production, express.raw for the bytes; headers that nobody asked for are off.
// What it does not do: deduplicate, count, refuse what RFC 9112 calls invalid, spool while Redis is away, drain.

"use strict";
const { createHmac, timingSafeEqual } = require("node:crypto");
const express = require("express");
const { Redis } = require("ioredis");

const [port, path, secret] = process.argv.slice(2);
const redis = new Redis({ path, enableAutoPipelining: true });
const app = express();
app.disable("x-powered-by");
app.disable("etag");

function good(body, signature) {
  const expected = Buffer.from("sha256=" + createHmac("sha256", secret).update(body).digest("hex"));
  const given = Buffer.from(signature || "");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

app.post("/api/webhooks/github", express.raw({ type: "*/*", limit: "25mb" }), async (request, response) => {
  if (!good(request.body, request.headers["x-hub-signature-256"])) {
    response.status(401).json({ status: "rejected" });
    return;
  }
  const id = request.headers["x-github-delivery"];
  await redis.xadd("jobs", "*", "id", id, "body", request.body);
  response.status(202).json({ status: "accepted", id });
});
const server = app.listen({ port: Number(port), host: "127.0.0.1", backlog: 1024 });
server.keepAliveTimeout = 60_000;
