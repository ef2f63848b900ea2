import OpenAI from "openai";

const { BASE, KEY, CHAT, VECTORS } = process.env;
const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const seen = {};

seen.models = (await client.models.list()).data.map((model) => model.id).sort();

const plain = await client.chat.completions.create({ model: CHAT, messages, max_tokens: 4 });
seen.plain = [plain.model, plain.choices[0].message.content, plain.usage.completion_tokens];

let streamed = "";
let usage = null;
const options = { include_usage: true };
for await (const chunk of await client.chat.completions.create({
  model: CHAT, messages, max_tokens: 4, stream: true, stream_options: options,
})) {
  streamed += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
seen.streamed = [streamed, usage.completion_tokens];

const tools = [{ type: "function", function: { name: "weather", parameters: { type: "object", properties: {} } } }];
const ask = [{ role: "user", content: "!tool" }];
const called = await client.chat.completions.create({ model: CHAT, messages: ask, tools });
seen.tool = called.choices[0].message.tool_calls[0].function;
const final = await client.chat.completions.stream({ model: CHAT, messages: ask, tools }).finalChatCompletion();
seen.tool_streamed = final.choices[0].message.tool_calls[0].function.arguments;

seen.completion = (await client.completions.create({ model: CHAT, prompt: "once", max_tokens: 2 })).choices[0].text;

seen.response = (await client.responses.create({ model: CHAT, input: "hello", max_output_tokens: 3 })).output_text;
const kinds = [];
for await (const event of await client.responses.create({ model: CHAT, input: "hello", stream: true })) {
  kinds.push(event.type);
}
seen.response_streamed = [kinds[0], kinds.at(-1)];

seen.embeddings = (await client.embeddings.create({ model: VECTORS, input: ["a", "b"] })).data.map((row) => row.embedding);

const errors = [
  () => client.chat.completions.create({ model: "no-such-model", messages }),
  () => client.embeddings.create({ model: CHAT, input: "a" }),
  () => client.withOptions({ apiKey: "hl_nobody_nothing" }).chat.completions.create({ model: CHAT, messages }),
];
seen.errors = [];
for (const attempt of errors) {
  try {
    await attempt();
  } catch (error) {
    seen.errors.push([error.constructor.name, error.status, error.code]);
  }
}
console.log(JSON.stringify(seen));
