// Vercel's AI SDK with its three providers: text, streams, tools, objects, second turns.

import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import * as scenes from "./scenes.mjs";

globalThis.AI_SDK_LOG_WARNINGS = false;
const schema = z.object({ city: z.string(), days: z.number().int() });

async function all(parts) {
  const found = [];
  for await (const part of parts) found.push(part);
  return found;
}

function able(cities) {
  const weather = tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => {
      cities.push(city);
      return scenes.heard;
    },
  });
  return { tools: { weather }, stopWhen: stepCountIs(3), prompt: scenes.question };
}

const onError = ({ error }) => {
  throw error;
};

function of(model) {
  const usual = { model, maxRetries: 0 };
  return {
    plain: async () => (await generateText({ ...usual, prompt: scenes.greeting })).text,
    streamed: async () => all(streamText({ ...usual, prompt: scenes.greeting, onError }).textStream),
    tool: async () => {
      const heard = [];
      return { heard, answer: (await generateText({ ...usual, ...able(heard) })).text };
    },
    "streamed tool": async () => {
      const heard = [];
      const result = streamText({ ...usual, ...able(heard), onError });
      await result.consumeStream();
      return { heard, answer: await result.text };
    },
    structured: async () => (await generateObject({ ...usual, schema, prompt: scenes.question })).object,
    "streamed structured": async () => {
      const result = streamObject({ ...usual, schema, prompt: scenes.question, onError });
      await all(result.partialObjectStream);
      return await result.object;
    },
    "second turn": async () => {
      const messages = [{ role: "user", content: scenes.greeting }];
      const first = await generateText({ ...usual, messages });
      messages.push(...first.response.messages, { role: "user", content: scenes.greeting });
      return (await generateText({ ...usual, messages })).text;
    },
    "second turn after a tool": async () => {
      const messages = [{ role: "user", content: scenes.question }];
      const { prompt, ...fields } = able([]);
      const first = await generateText({ ...usual, ...fields, messages });
      messages.push(...first.response.messages, { role: "user", content: scenes.question });
      return (await generateText({ ...usual, ...fields, messages })).text;
    },
  };
}

const byOpenAI = createOpenAI({ baseURL: scenes.openai, apiKey: scenes.key });
const compatible = createOpenAICompatible({ name: "loreloop", baseURL: scenes.openai, apiKey: scenes.key });
const strict = createOpenAICompatible({
  name: "loreloop",
  baseURL: scenes.openai,
  apiKey: scenes.key,
  supportsStructuredOutputs: true,
  includeUsage: true,
});
const byAnthropic = createAnthropic({ baseURL: `${scenes.anthropic}/v1`, apiKey: scenes.key });
await scenes.tell({
  "openai, responses": of(byOpenAI(scenes.model)),
  "openai, chat": of(byOpenAI.chat(scenes.model)),
  "openai-compatible": of(compatible(scenes.model)),
  "openai-compatible, structured outputs": of(strict(scenes.model)),
  anthropic: of(byAnthropic(scenes.model)),
});
