// A peer of the worker: BullMQ. `bullmq.js fill REDIS_SOCKET JOBS BODY_FILE` · `bullmq.js work REDIS_SOCKET CONCURRENCY`
//
// As its documents advise: jobs in bulk, removed when they are complete, one worker with a concurrency.
// What it does not do: sync a job before the sender is answered, keep a history of what is removed, end a job that hangs.
// It counts in memory, and writes the count (file COUNT) every 5 ms.

"use strict";
const { openSync, readFileSync, writeSync } = require("node:fs");
const { Queue, Worker } = require("bullmq");

const [mode, path, number, bodyFile] = process.argv.slice(2);

async function fill() {
  const queue = new Queue("jobs", { connection: { path } });
  const body = readFileSync(bodyFile, "utf8");
  for (let made = 0; made < Number(number); made += 500) {
    const rows = Math.min(500, Number(number) - made);
    await queue.addBulk(Array.from({ length: rows }, () => ({ name: "push", data: { body } })));
  }
  await queue.close();
}

function work() {
  let done = 0;
  let told = 0;
  const file = openSync(process.env.COUNT, "r+");
  const cell = Buffer.alloc(8);
  setInterval(() => {
    if (done !== told) {
      told = done;
      cell.writeBigInt64LE(BigInt(told));
      writeSync(file, cell, 0, 8, 0);
    }
  }, 5);
  const handle = async (job) => {
    JSON.parse(job.data.body);
    done += 1;
  };
  const options = { concurrency: Number(number), removeOnComplete: { count: 0 }, removeOnFail: { count: 0 } };
  const worker = new Worker("jobs", handle, { connection: { path, maxRetriesPerRequest: null }, ...options });
  worker.on("error", (error) => console.error(error));
}

if (mode === "fill") fill();
else work();
