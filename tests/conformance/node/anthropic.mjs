import Anthropic from "@anthropic-ai/sdk";

const { BASE, KEY, CHAT } = process.env;
const client = new Anthropic({ baseURL: BASE.replace(/\/v1$/, ""), apiKey: KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const seen = {};

const plain = await client.messages.create({ model: CHAT, messages, max_tokens: 4 });
seen.plain = [plain.content[0].text, plain.stop_reason, plain.usage.output_tokens];

const streamed = await client.messages.stream({ model: CHAT, messages, max_tokens: 4 }).finalMessage();
seen.streamed = [streamed.content[0].text, streamed.usage.output_tokens];

const tools = [{ name: "weather", input_schema: { type: "object", properties: {} } }];
const ask = [{ role: "user", content: "!tool" }];
const called = await client.messages.stream({ model: CHAT, messages: ask, max_tokens: 9, tools }).finalMessage();
seen.tool = [called.stop_reason, called.content[0].input];

seen.counted = (await client.messages.countTokens({ model: CHAT, messages })).input_tokens;

try {
  await client.messages.create({ model: "no-such-model", messages, max_tokens: 1 });
} catch (error) {
  seen.error = [error.constructor.name, error.status, error.error.error.type];
}
console.log(JSON.stringify(seen));
