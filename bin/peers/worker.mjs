// The worker of BullMQ's own guide with Elasticsearch's official client: node worker.mjs REDIS_PORT URL INDEX
import { Client } from "@elastic/elasticsearch";
import { Worker } from "bullmq";

const [port, node, index] = process.argv.slice(2);
const client = new Client({ node });
const connection = { host: "127.0.0.1", port: Number(port) };
const worker = new Worker(
  "sync",
  async ({ data: { id, document } }) => {
    await client.index({ index, id, document });
    console.log(`[ES] INDEX ${index}/${id}`);
  },
  { connection, concurrency: 10, removeOnComplete: { count: 1000 } },
);
const took = [];
worker.on("completed", (job) => took.push([Date.now(), Date.now() - job.timestamp]));
process.on("SIGTERM", async () => {
  await worker.close();
  process.stderr.write(JSON.stringify(took), () => process.exit(0));
});
