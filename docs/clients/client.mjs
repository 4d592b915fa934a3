#!/usr/bin/env node
// Vectors for texts by RabbitMQ, in JavaScript. Needs amqplib: npm ci (beside this file and its package-lock.json).
//
//     node client.mjs [--url URL] [--prefix NAME] [--budget SECONDS] [--stream] TEXT...
//
// One line of JSON for each text, in order. Exit: 0 done, 1 the job was refused or failed, 69 no broker, no service, or not
// a word from it in time.

import { randomUUID } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import amqp from "amqplib";

const EXIT_FAILED = 1;
const EXIT_UNAVAILABLE = 69;

/** Nobody takes the job, or nobody answers. */
export class Unavailable extends Error {}

/** An answer that is an error; `kind` and `retryAfterMs` (or undefined) are the service's words. */
export class JobError extends Error {
  constructor(error) {
    super(`${error.type}: ${error.message}`);
    this.kind = error.type;
    this.retryAfterMs = error.retry_after_ms;
  }
}

/** A connection and a reply queue, for any number of jobs at the same time. */
export class Embedder {
  static async open(url, prefix = "embeddings") {
    const self = new Embedder();
    self.prefix = prefix;
    self.jobs = new Map(); // correlation id -> the job's mailbox
    self.connection = await amqp.connect(url);
    self.connection.on("error", () => {}); // "close" follows, and tells those who wait
    self.connection.on("close", () => self.#fail(new Unavailable("the connection to the broker is lost")));
    self.channel = await self.connection.createConfirmChannel();
    self.channel.on("error", (error) => self.#fail(new Unavailable(error.message)));
    // What could not be routed comes back, because it is published as mandatory.
    self.channel.on("return", (message) => {
      const queue = message.fields.routingKey;
      const gone = new Unavailable(`there is no queue ${queue}: has the service ever run?`);
      self.jobs.get(message.properties.correlationId)?.(gone);
    });
    // Ours alone, and gone with the connection.
    self.replies = (await self.channel.assertQueue("", { exclusive: true })).queue;
    await self.channel.consume(self.replies, (message) => self.#heard(message), { noAck: true });
    return self;
  }

  close() {
    return this.connection.close();
  }

  /**
   * The vectors of the texts, in order. `budget` in seconds is how long you will wait: for the answer, or with `stream` for the
   * next word of the job. A service that is full says when to come back; that is heeded, as long as the budget lasts.
   */
  async embed(texts, { budget = 30, stream = false } = {}) {
    const job = randomUUID(); // the same at each try, so that an answer to an earlier one is as good
    const end = Date.now() + budget * 1000;
    for (;;) {
      try {
        return await this.#attempt(job, texts, budget, end, stream);
      } catch (error) {
        if (!(error instanceof JobError) || error.retryAfterMs === undefined) throw error;
        // Up to half as much more, or all who were refused would come back in one moment.
        const pause = error.retryAfterMs * (1 + Math.random() / 2);
        if (Date.now() + pause >= end) throw error;
        console.error(`${error.kind}: again in ${(pause / 1000).toFixed(2)} s`);
        await sleep(pause);
      }
    }
  }

  #attempt(job, texts, budget, end, stream) {
    return new Promise((resolve, reject) => {
      const vectors = new Array(texts.length);
      let timer;
      const finish = (settle, value) => {
        clearTimeout(timer);
        this.jobs.delete(job);
        settle(value);
      };
      const late = new Unavailable("no answer in time: is the service running? (embeddings status)");
      const wait = (ms) => {
        clearTimeout(timer);
        timer = setTimeout(() => finish(reject, late), Math.max(0, ms));
      };
      wait(end - Date.now());
      this.jobs.set(job, (kind, answer) => {
        if (kind instanceof Error) return finish(reject, kind);
        if (kind === "embeddings.error") return finish(reject, new JobError(answer.error));
        // A chunk may come twice after a death of the service; the index says which it is.
        for (const item of answer.data ?? []) vectors[item.index] = item.embedding;
        if (kind === "embeddings.result" || kind === "embeddings.done") return finish(resolve, vectors);
        wait(budget * 1000);
      });
      const headers = { "x-sent-at-ms": Date.now() };
      // A job that cannot begin within its budget is answered deadline_exceeded, and never computed for nobody.
      if (!stream) headers["x-budget-ms"] = Math.max(1, Math.round(end - Date.now()));
      const properties = {
        replyTo: this.replies,
        correlationId: job,
        messageId: job,
        contentType: "application/json",
        persistent: true,
        mandatory: true,
        headers,
      };
      const body = Buffer.from(JSON.stringify({ input: texts, stream }));
      const lane = stream ? "bulk" : "interactive";
      // The broker's confirm: it has the job. Without one the time-out tells.
      this.channel.publish("", `${this.prefix}.${lane}`, body, properties, (error) => {
        if (error) finish(reject, new Unavailable("the broker does not take the job"));
      });
    });
  }

  #heard(message) {
    if (message === null) return this.#fail(new Unavailable("the broker has taken the reply queue away"));
    // Anything that nobody waits for is a late answer to a job that was given up.
    const tell = this.jobs.get(message.properties.correlationId);
    tell?.(message.properties.type, JSON.parse(message.content.toString()));
  }

  #fail(error) {
    for (const tell of [...this.jobs.values()]) tell(error);
  }
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    url: { type: "string", default: "amqp://guest:guest@127.0.0.1:5672/%2f" },
    prefix: { type: "string", default: "embeddings" },
    budget: { type: "string", default: "30" },
    stream: { type: "boolean", default: false },
  },
});
try {
  const embedder = await Embedder.open(values.url, values.prefix);
  const vectors = await embedder.embed(positionals, { budget: Number(values.budget), stream: values.stream });
  await embedder.close();
  positionals.forEach((text, index) => console.log(JSON.stringify({ text, embedding: vectors[index] })));
} catch (error) {
  console.error(`error: ${error.message || error.code || error}`);
  process.exit(error instanceof JobError ? EXIT_FAILED : EXIT_UNAVAILABLE);
}
