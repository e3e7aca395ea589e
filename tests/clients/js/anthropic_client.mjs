// Anthropic's own client for JavaScript.

import Anthropic from "@anthropic-ai/sdk";
import * as scenes from "./scenes.mjs";

const client = new Anthropic({ baseURL: scenes.anthropic, apiKey: scenes.key, maxRetries: 0 });
const usual = { model: scenes.model, max_tokens: 500 };
const asked = (content) => ({ ...usual, messages: [{ role: "user", content }] });

async function roundTrip(stream) {
  const heard = [];
  const run = async ({ city }) => {
    heard.push(city);
    return scenes.heard;
  };
  const tool = { name: "weather", description: "The weather of a city.", input_schema: scenes.place, run, parse: (input) => input };
  const runner = client.beta.messages.toolRunner({ ...asked(scenes.question), tools: [tool], stream });
  let last;
  for await (const step of runner) last = stream ? await step.finalMessage() : step;
  return { heard, answer: last.content.map((block) => block.text ?? "").join("") };
}

await scenes.tell({
  messages: {
    plain: async () => (await client.messages.create(asked(scenes.greeting))).content[0].text,
    streamed: async () => {
      const parts = [];
      const stream = client.messages.stream(asked(scenes.greeting)).on("text", (part) => parts.push(part));
      await stream.finalMessage();
      return parts;
    },
    tool: () => roundTrip(false),
    "streamed tool": () => roundTrip(true),
    structured: async () => {
      const format = { type: "json_schema", schema: scenes.forecast };
      const answer = await client.messages.create({ ...asked(scenes.question), output_config: { format } });
      return JSON.parse(answer.content[0].text);
    },
    counted: async () => (await client.messages.countTokens({ model: scenes.model, messages: asked("hi").messages })).input_tokens > 0,
  },
});
