/**
 * Output that obeys a JSON schema, whatever the temperature.
 *
 * Run: deno run --allow-read --allow-ffi=build examples/json.ts
 *
 * Usage: json.ts [--count N] [--temperature T]
 */
import { parseArgs } from "node:util";
import { loadModel } from "../mod.ts";

/** What the schema below describes. */
interface Person {
  name: string;
  age: number;
  likes: "apples" | "stories" | "the sea";
}

async function main() {
  const { values } = parseArgs({
    args: Deno.args,
    options: {
      count: { type: "string", default: "5" },
      temperature: { type: "string", default: "0.9" },
    },
  });
  const json = {
    type: "object",
    properties: {
      name: { type: "string", pattern: "^[A-Z][a-z]{2,9}$" },
      age: { type: "integer", minimum: 1, maximum: 99 },
      likes: { enum: ["apples", "stories", "the sea"] },
    },
    required: ["name", "age", "likes"],
    additionalProperties: false,
  };

  await using model = await loadModel(
    new URL("../models/nano", import.meta.url),
  );
  const question = "Give me JSON for a person, with name, age and likes.";
  for (let seed = 0; seed < Number(values.count); seed++) {
    const person = await model.generate([{ role: "user", content: question }], {
      grammar: { json },
      temperature: Number(values.temperature),
      seed,
    }).json<Person>();
    console.log(`${person.name}, ${person.age}, likes ${person.likes}`);
  }
}

try {
  await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  Deno.exit(1);
}
