// OpenAI's JavaScript client against the service, unchanged but for the base URL.
// Usage: node client.mjs BASE_URL   (beside a folder node_modules that has it)

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(process.env.OPENAI_FOLDER + "/");
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 10 });
const model = "all-MiniLM-L6-v2";

const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
const cosine = (a, b) => dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b));

const plain = await client.embeddings.create({ model, input: "a text", encoding_format: "float" });
const coded = await client.embeddings.create({ model, input: "a text" });
assert.equal(plain.data[0].embedding.length, 384);
assert.ok(cosine(plain.data[0].embedding, coded.data[0].embedding) > 0.999999);
const batch = await client.embeddings.create({ model, input: ["a text", "another"], dimensions: 64, user: "someone" });
assert.deepEqual(batch.data.map((item) => [item.index, item.embedding.length]), [[0, 64], [1, 64]]);
assert.ok(batch.usage.total_tokens > 4);

await assert.rejects(client.embeddings.create({ model: "none", input: "a" }), (error) => {
  assert.ok(error instanceof OpenAI.NotFoundError);
  assert.equal(error.code, "model_not_found");
  assert.equal(error.param, "model");
  return true;
});
await assert.rejects(client.embeddings.create({ model, input: [] }), OpenAI.BadRequestError);
const ids = [];
for await (const one of client.models.list()) ids.push(one.id);
assert.ok(ids.includes(model));

// A crowd above what may be inside, carried by the client's own retries.
const long = Array(64).fill("words to work on while others are refused ".repeat(10));
const crowd = await Promise.all(Array.from({ length: 16 }, () => client.embeddings.create({ model, input: long })));
assert.ok(crowd.every((answer) => answer.data.length === 64));
console.log("all cases passed");
