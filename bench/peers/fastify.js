// A peer of ingestion: fastify, with ioredis and its auto-pipelining. `fastify.js PORT REDIS_SOCKET SECRET`
//
// As its documents advise: no logger, a body parser that keeps the raw bytes, a response schema (compiled serializer).
// What it does not do: deduplicate, count, refuse what RFC 9112 calls invalid, spool while Redis is away, drain.

"use strict";
const { createHmac, timingSafeEqual } = require("node:crypto");
const { Redis } = require("ioredis");

const [port, path, secret] = process.argv.slice(2);
const redis = new Redis({ path, enableAutoPipelining: true });
const app = require("fastify")({ logger: false, bodyLimit: 25 << 20, keepAliveTimeout: 60_000 });

function good(body, signature) {
  const expected = Buffer.from("sha256=" + createHmac("sha256", secret).update(body).digest("hex"));
  const given = Buffer.from(signature || "");
  return given.length === expected.length && timingSafeEqual(given, expected);
}

const answer = { type: "object", properties: { status: { type: "string" }, id: { type: "string" } } };
app.addContentTypeParser("application/json", { parseAs: "buffer" }, (_request, body, done) => done(null, body));
app.post("/api/webhooks/github", { schema: { response: { "2xx": answer, "4xx": answer } } }, async (request, reply) => {
  if (!good(request.body, request.headers["x-hub-signature-256"])) {
    return reply.code(401).send({ status: "rejected" });
  }
  const id = request.headers["x-github-delivery"];
  await redis.xadd("jobs", "*", "id", id, "body", request.body);
  return reply.code(202).send({ status: "accepted", id });
});
app.listen({ port: Number(port), host: "127.0.0.1", backlog: 1024 });
