// An application that adds jobs, one by one or (rate 0) as fast as it can: node writer.mjs REDIS_PORT RATE < ROWS
import { createInterface } from "node:readline";
import { Queue } from "bullmq";

const [port, rate] = process.argv.slice(2).map(Number);
const queue = new Queue("sync", { connection: { host: "127.0.0.1", port } });
const jobs = [];
for await (const line of createInterface({ input: process.stdin })) {
  const [id, document] = JSON.parse(line);
  jobs.push({ name: "index", data: { id, document }, opts: { attempts: 3, backoff: { type: "exponential", delay: 2000 } } });
}
if (rate) {
  const first = performance.now();
  for (const [at, { name, data, opts }] of jobs.entries()) {
    const wait = first + (1000 * at) / rate - performance.now();
    if (wait > 0) await new Promise((resolve) => setTimeout(resolve, wait));
    await queue.add(name, data, opts);
  }
} else {
  for (let at = 0; at < jobs.length; at += 1000) await queue.addBulk(jobs.slice(at, at + 1000));
}
await queue.close();
