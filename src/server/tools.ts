/**
 * Tools of a chat request.
 *
 * @module
 */
import { checkGrammar } from "../grammar/grammar.ts";
import { ApiError, badField } from "./error.ts";
import { Fields } from "./fields.ts";

/** A function that the model may call. */
export interface Tool {
  name: string;
  description: string | undefined;
  /** A JSON schema as the client sent it, for the prompt. */
  parameters: object;
  /** What the arguments are held to. */
  schema: object;
}

/** What a request says of tools. */
export interface ToolChoice {
  /** Those that may be called. */
  tools: readonly Tool[];
  /** Whether one must be. */
  required: boolean;
  /** Whether several may be called in one answer. */
  parallel: boolean;
}

const NAME = /^[a-zA-Z0-9_-]{1,64}$/;
const MAX_TOOLS = 128;
const NO_PARAMETERS = {
  type: "object",
  properties: {},
  additionalProperties: false,
};

/** The schema if it can be enforced; for tools that are not strict else any object. */
function enforceable(schema: object, strict: boolean, param: string): object {
  try {
    checkGrammar({ json: schema });
    return schema;
  } catch (error) {
    if (!(error instanceof TypeError)) throw error;
    if (!strict) return { type: "object" };
    throw new ApiError(
      400,
      `Invalid '${param}': ${
        error.message.replace("Cannot generate: grammar.json", "the schema")
      }`,
      { param, code: "invalid_schema", cause: error },
    );
  }
}

function readTool(each: unknown, i: number): Tool {
  const tool = new Fields(each, `tools[${i}]`);
  tool.required("type", tool.oneOf("type", ["function"]));
  const fields = tool.required("function", tool.fields("function"));
  const name = fields.required("name", fields.string("name"));
  if (!NAME.test(name)) {
    fields.fail("name", "1 to 64 characters of a-z, A-Z, 0-9, _ and -");
  }
  const parameters = fields.fields("parameters")?.object ?? NO_PARAMETERS;
  const strict = fields.boolean("strict") ?? false;
  return {
    name,
    description: fields.string("description"),
    parameters,
    schema: enforceable(parameters, strict, fields.path("parameters")),
  };
}

function find(tools: readonly Tool[], name: string, param: string): Tool {
  const tool = tools.find((each) => each.name === name);
  if (tool) return tool;
  throw badField(param, name, "the name of one of the tools");
}

/** The name in `{ type: "function", function: { name } }`. */
function namedIn(choice: Fields): string {
  const named = choice.required("function", choice.fields("function"));
  return named.required("name", named.string("name"));
}

/**
 * Reads `tools`, `tool_choice` and `parallel_tool_calls`.
 *
 * @returns undefined when no tool may be called
 * @throws ApiError 400
 */
export function readTools(request: Fields): ToolChoice | undefined {
  for (const name of ["functions", "function_call"]) {
    if (request.value(name) !== undefined) {
      request.fail(name, "absent: it was replaced by tools and tool_choice");
    }
  }
  const list = request.array("tools") ?? [];
  if (list.length > MAX_TOOLS) {
    request.fail("tools", `an array of at most ${MAX_TOOLS} tools`);
  }
  const tools = list.map(readTool);
  const names = new Set(tools.map(({ name }) => name));
  if (names.size < tools.length) {
    request.fail("tools", "an array of tools with different names");
  }
  const parallel = request.boolean("parallel_tool_calls") ?? true;
  const choice = request.value("tool_choice") ?? "auto";
  if (choice === "none") return undefined;
  if (choice === "auto" || choice === "required") {
    if (tools.length > 0) {
      return { tools, required: choice === "required", parallel };
    }
    if (choice === "auto") return undefined;
    return request.fail("tool_choice", "absent or 'none' without tools");
  }
  if (typeof choice === "string") {
    request.fail("tool_choice", "'none', 'auto', 'required' or an object");
  }
  const fields = new Fields(choice, "tool_choice");
  const kinds = ["function", "allowed_tools"] as const;
  if (fields.required("type", fields.oneOf("type", kinds)) === "function") {
    const tool = find(tools, namedIn(fields), "tool_choice.function.name");
    return { tools: [tool], required: true, parallel: false };
  }
  const allowed = fields.required(
    "allowed_tools",
    fields.fields("allowed_tools"),
  );
  const mode = allowed.oneOf("mode", ["auto", "required"]);
  const path = allowed.path("tools");
  const some = allowed.required("tools", allowed.array("tools"))
    .map((each, i) => {
      const at = `${path}[${i}]`;
      return find(tools, namedIn(new Fields(each, at)), at);
    });
  if (some.length === 0) allowed.fail("tools", "an array of at least one tool");
  return { tools: [...new Set(some)], required: mode === "required", parallel };
}
