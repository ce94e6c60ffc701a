// Increments each key of a file, one INCR after the other, and prints the seconds that this took.
const fs = require("node:fs");
const Redis = require("ioredis");

async function main() {
  const [port, path] = process.argv.slice(2);
  const keys = fs.readFileSync(path, "utf8").split("\n");
  const redis = new Redis(Number(port), "127.0.0.1");
  await redis.ping();
  const started = process.hrtime.bigint();
  for (const key of keys) {
    await redis.incr(key);
  }
  console.log(Number(process.hrtime.bigint() - started) / 1e9);
  await redis.quit();
}

main();
