// OpenAI's own client for JavaScript, over chat and responses.

import OpenAI from "openai";
import * as scenes from "./scenes.mjs";

const client = new OpenAI({ baseURL: scenes.openai, apiKey: scenes.key, maxRetries: 0 });
const model = scenes.model;
const asked = (content) => [{ role: "user", content }];
const weather = { name: "weather", description: "The weather of a city.", parameters: scenes.place };

function runner(fields) {
  const heard = [];
  const ask = async ({ city }) => {
    heard.push(city);
    return scenes.heard;
  };
  const tool = { type: "function", function: { ...weather, function: ask, parse: JSON.parse } };
  return { heard, run: client.chat.completions.runTools({ model, messages: asked(scenes.question), tools: [tool], ...fields }) };
}

const chat = {
  plain: async () => {
    const answer = await client.chat.completions.create({ model, messages: asked(scenes.greeting) });
    return answer.choices[0].message.content;
  },
  streamed: async () => {
    const parts = [];
    const stream = await client.chat.completions.create({ model, messages: asked(scenes.greeting), stream: true });
    for await (const chunk of stream) parts.push(chunk.choices[0]?.delta.content ?? "");
    return parts;
  },
  tool: async () => {
    const { heard, run } = runner({});
    return { heard, answer: await run.finalContent() };
  },
  "streamed tool": async () => {
    const { heard, run } = runner({ stream: true });
    return { heard, answer: await run.finalContent() };
  },
  structured: async () => {
    const answer = await client.chat.completions.parse({
      model,
      messages: asked(scenes.question),
      response_format: { type: "json_schema", json_schema: { name: "forecast", schema: scenes.forecast, strict: true } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
};

const text = { format: { type: "json_schema", name: "forecast", schema: scenes.forecast, strict: true } };

async function roundTrip(stream) {
  const heard = [];
  const input = asked(scenes.question);
  for (;;) {
    const body = { model, input, tools: [{ type: "function", strict: true, ...weather }] };
    const answer = stream
      ? await client.responses.stream(body).finalResponse()
      : await client.responses.create(body);
    input.push(...answer.output);
    const calls = answer.output.filter((item) => item.type === "function_call");
    if (!calls.length) return { heard, answer: answer.output_text };
    for (const call of calls) {
      heard.push(JSON.parse(call.arguments).city);
      input.push({ type: "function_call_output", call_id: call.call_id, output: scenes.heard });
    }
  }
}

const responses = {
  plain: async () => (await client.responses.create({ model, input: scenes.greeting })).output_text,
  streamed: async () => {
    const parts = [];
    for await (const event of await client.responses.create({ model, input: scenes.greeting, stream: true }))
      if (event.type === "response.output_text.delta") parts.push(event.delta);
    return parts;
  },
  tool: () => roundTrip(false),
  "streamed tool": () => roundTrip(true),
  structured: async () => JSON.parse((await client.responses.create({ model, input: scenes.question, text })).output_text),
};

await scenes.tell({ chat, responses });
