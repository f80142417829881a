// Every route under /v1, driven by the official SDK as an application drives it: only the base URL is another.
// Prints what it saw as one JSON object. Run beside a folder `node_modules` that has the package `openai`.
import OpenAI, { toFile } from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const seen = {};
const messages = [{ role: "user", content: "hello you" }];

const jsonl = (name, rows) => toFile(Buffer.from(rows.map((row) => JSON.stringify(row) + "\n").join("")), name);
const all = async (pages) => {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
};
const refused = async (promise) => {
  try {
    await promise;
  } catch (error) {
    return [error.constructor.name, error.status, error.code];
  }
  throw new Error("this should have been refused");
};
const until = async (look) => {
  for (let tries = 0; tries < 400; tries++) {
    const found = await look();
    if (found) return found;
    await new Promise((done) => setTimeout(done, 50));
  }
  throw new Error("it did not happen in time");
};

// Models
seen.models = (await all(client.models.list())).map((model) => model.id);
seen.model = (await client.models.retrieve("de@1")).root;
seen.unknown = await refused(client.models.retrieve("nobody"));

// Answers
seen.chat = (await client.chat.completions.create({ model: "de", messages })).choices[0].message.content;
const stream = await client.chat.completions.create({ model: "de", messages, stream: true });
seen.streamed = "";
for await (const chunk of stream) seen.streamed += chunk.choices[0]?.delta.content ?? "";
seen.final = await client.chat.completions.stream({ model: "de", messages }).finalContent();
seen.completion = (await client.completions.create({ model: "base", prompt: "Once" })).choices[0].text;
seen.dimensions = (await client.embeddings.create({ model: "base", input: "text" })).data[0].embedding.length;
seen.wrong = await refused(client.chat.completions.create({ model: "base", messages, temperature: 9 }));

// Responses
const response = await client.responses.create({ model: "de", input: "hello you" });
seen.response = [response.output_text, (await client.responses.retrieve(response.id)).output_text];
seen.inputs = (await all(client.responses.inputItems.list(response.id))).map((item) => item.content[0].text);
const parts = await client.responses.create({ model: "de", input: "again", previous_response_id: response.id, stream: true });
seen.parts = "";
for await (const event of parts) if (event.type === "response.output_text.delta") seen.parts += event.delta;
await client.responses.delete(response.id);
seen.gone = await refused(client.responses.retrieve(response.id));

// Files
const chat = { messages: [...messages, { role: "assistant", content: "hello" }] };
const training = await client.files.create({ file: await jsonl("chats.jsonl", Array(4).fill(chat)), purpose: "fine-tune" });
const line = (n) => ({
  custom_id: `r${n}`,
  method: "POST",
  url: "/v1/chat/completions",
  body: { model: "de", messages: [{ role: "user", content: `text ${n}` }] },
});
const requests = await client.files.create({
  file: await jsonl("requests.jsonl", [0, 1, 2].map(line)),
  purpose: "batch",
});
seen.processed = (await client.files.waitForProcessing(training.id)).status;
seen.files = (await all(client.files.list({ limit: 1, order: "asc" }))).map((file) => file.filename);
seen.content = (await (await client.files.content(training.id)).text()).split("\n").length;
seen.badFile = await refused(client.files.create({ file: await jsonl("bad.jsonl", [{ messages: [] }]), purpose: "fine-tune" }));

// Fine-tuning
const { jobs } = client.fineTuning;
const job = await jobs.create({ model: "base", training_file: training.id, suffix: "mine", metadata: { team: "a" } });
seen.job = [job.status, (await jobs.retrieve(job.id)).id === job.id];
seen.listed = (await all(jobs.list({ limit: 1, metadata: { team: "a" } }))).length;
seen.paused = (await jobs.pause(job.id)).status;
seen.resumed = (await jobs.resume(job.id)).status;
seen.cancelled = (await jobs.cancel(job.id)).status;
seen.events = (await all(jobs.listEvents(job.id, { limit: 2 }))).map((event) => event.message);
seen.told = (await all(await client.get(`/fine_tuning/jobs/${job.id}/events`, { query: { stream: true }, stream: true }))).length;
seen.checkpoints = (await all(jobs.checkpoints.list(job.id))).length;

// Batches
const batch = await client.batches.create({
  input_file_id: requests.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
const done = await until(async () => {
  const found = await client.batches.retrieve(batch.id);
  return found.status === "completed" && found;
});
const output = await (await client.files.content(done.output_file_id)).text();
seen.batch = Object.fromEntries(
  output
    .trim()
    .split("\n")
    .map((text) => JSON.parse(text))
    .map((result) => [result.custom_id, result.response.body.choices[0].message.content]),
);
seen.batches = (await all(client.batches.list({ limit: 1 }))).length;
seen.tooLate = await refused(client.batches.cancel(batch.id));

seen.deleted = [(await client.files.delete(training.id)).deleted, (await client.models.delete("de")).deleted];
console.log(JSON.stringify(seen));
