// What every JavaScript client is put through, and how a script tells what came of it; as zoo/scenes.py for Python.

export const [address, key, model] = process.argv.slice(2);
export const openai = `${address}/v1`;
export const anthropic = `${address}/anthropic/api`;
export const greeting = "How are you?";
export const question = "How is the weather in Oslo?";
export const heard = "rain tomorrow";
export const forecast = {
  type: "object",
  properties: { city: { type: "string" }, days: { type: "integer" } },
  required: ["city", "days"],
  additionalProperties: false,
};
export const place = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };

// Plays all scenes of all ways and prints what they gave; a scene that throws is told by its stack.
export async function tell(ways) {
  const found = {};
  for (const [way, scenes] of Object.entries(ways)) {
    found[way] = {};
    for (const [name, scene] of Object.entries(scenes)) {
      try {
        found[way][name] = await scene();
      } catch (error) {
        found[way][name] = { raised: `${error?.stack ?? error}\n${error?.responseBody ?? ""}` };
      }
    }
  }
  console.log(JSON.stringify(found));
}
