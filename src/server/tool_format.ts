/**
 * How calls of tools are written in a model's output: as its chat template writes them, or, where
 * that knows no tools, as JSON between tags.
 *
 * @module
 */
import type { Message } from "../text/message.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import type { ChatMessage } from "./messages.ts";
import type { Tool } from "./tools.ts";

/** The pieces around names and arguments, as token ids. */
export interface ToolFormat {
  /** Before the first name. */
  open: readonly number[];
  /** Between a name and its arguments. */
  middle: string;
  /** After arguments, whatever follows. */
  close: readonly number[];
  /** After that, before the next name. */
  next: readonly number[];
  /** After that, when there is no other call: its first token. */
  end: number;
  /** What a model writes before its first call: a token, or a text where there is none. */
  trigger: { token: number } | { text: string };
  /** The conversation for the template, its tools told in the system message. */
  messages(
    messages: readonly ChatMessage[],
    tools: readonly Tool[],
  ): Message[];
}

const OPEN = "<tool_call>";
const CLOSE = "</tool_call>";

function commonPrefix(a: readonly number[], b: readonly number[]): number {
  let length = 0;
  while (length < a.length && a[length] === b[length]) length++;
  return length;
}

/** Puts a text into the system message. */
function withSystem(messages: Message[], text: string): Message[] {
  const [first, ...rest] = messages;
  if (first.role !== "system") {
    return [{ role: "system", content: text }, ...messages];
  }
  const content = first.content === "" ? text : `${first.content}\n\n${text}`;
  return [{ ...first, content }, ...rest];
}

function describeTools(tools: readonly Tool[]): string {
  return tools.map(({ name, description, parameters }) =>
    JSON.stringify({ name, description, parameters })
  ).join("\n");
}

/** The form of the template, or undefined when it has none that can be followed. */
function templateFormat(tokenizer: Tokenizer): ToolFormat | undefined {
  const said = "\ue000said";
  const names = ["\ue000name1", "\ue000name2"];
  const values = ["\ue000value1", "\ue000value2"];
  const asked: Message[] = [{ role: "user", content: "Hi" }];
  const reply: Message = {
    role: "assistant",
    content: "",
    tool_calls: names.map((name, i) => ({
      id: `call_${i}`,
      type: "function",
      function: { name, arguments: values[i] },
    })),
  };
  let prompt: string, text: string;
  // Some templates show calls only where nothing is said beside them.
  let together: boolean;
  try {
    prompt = tokenizer.applyChatTemplate(asked, { addGenerationPrompt: true });
    text = tokenizer.applyChatTemplate([...asked, reply]);
    together = tokenizer.applyChatTemplate([
      ...asked,
      { ...reply, content: said },
    ]).includes(names[0]);
  } catch (error) {
    if (error instanceof RangeError || error instanceof TypeError) return;
    throw error;
  }
  if (!text.startsWith(prompt)) return undefined;
  const pieces: string[] = [];
  let at = prompt.length;
  for (const probe of [names[0], values[0], names[1], values[1]]) {
    const found = text.indexOf(probe, at);
    if (found < 0) return undefined;
    pieces.push(text.slice(at, found));
    at = found + probe.length;
  }
  const [opening, middle, between, again] = pieces;
  // Arguments within quotes would have to be escaped.
  if (again !== middle || middle.endsWith('"')) return undefined;
  const encode = (piece: string) =>
    tokenizer.encode(piece, { addSpecialTokens: false, allowSpecial: true });
  const open = encode(opening);
  const follow = encode(between);
  const last = encode(text.slice(at));
  const shared = commonPrefix(follow, last);
  if (!tokenizer.addedTokenIds.has(open[0])) return undefined;
  if (shared === follow.length || shared === last.length) return undefined;
  return {
    open,
    middle,
    close: follow.slice(0, shared),
    next: follow.slice(shared),
    end: last[shared],
    trigger: { token: open[0] },
    messages: (messages, tools) => {
      const list = messages.flatMap((message): Message[] => {
        const { role, content, calls, callId } = message;
        if (role === "tool") return [{ role, content, tool_call_id: callId }];
        if (calls.length === 0) return [{ role, content }];
        const tool_calls = calls.map(({ id, name, arguments: value }) => ({
          id,
          type: "function",
          function: { name, arguments: value },
        }));
        if (together || content === "") return [{ role, content, tool_calls }];
        return [{ role, content }, { role, content: "", tool_calls }];
      });
      if (tools.length === 0) return list;
      return withSystem(
        list,
        "## Tools\n\nYou may call these functions; each is given with the " +
          `JSON schema of its parameters:\n\n${describeTools(tools)}`,
      );
    },
  };
}

const callText = (name: string, value: string) =>
  `${OPEN}\n{"name": "${name}", "arguments": ${value}}\n${CLOSE}`;

/** JSON between tags. */
function plainFormat(tokenizer: Tokenizer, lead: string): ToolFormat {
  const encode = (piece: string) =>
    tokenizer.encode(piece, { addSpecialTokens: false });
  const head = `${OPEN}\n{"name": "`;
  return {
    open: encode(lead + head),
    middle: '", "arguments": ',
    close: encode(`}\n${CLOSE}`),
    next: encode(`\n${head}`),
    end: tokenizer.eosTokenIds[0],
    trigger: { text: OPEN },
    messages: (messages, tools) => {
      const list = messages.map(({ role, content, calls, callId }): Message => {
        if (role === "tool") {
          const { name } = messages.flatMap((each) => each.calls)
            .find(({ id }) => id === callId) ?? {};
          const of = name === undefined ? "" : ` of ${name}`;
          return { role: "user", content: `Result${of}: ${content}` };
        }
        const parts = content === "" && calls.length > 0 ? [] : [content];
        for (const call of calls) {
          parts.push(callText(call.name, call.arguments));
        }
        return { role, content: parts.join("\n") };
      });
      if (tools.length === 0) return list;
      return withSystem(
        list,
        "You may call these functions; each is given with the JSON schema " +
          `of its parameters:\n${describeTools(tools)}\n` +
          "To call one, write nothing but this, with its name and arguments:\n" +
          callText("NAME", "{...}"),
      );
    },
  };
}

/**
 * The form of a model's tool calls.
 *
 * @param lead what answers begin with in the template
 */
export function toolFormat(tokenizer: Tokenizer, lead: string): ToolFormat {
  return templateFormat(tokenizer) ?? plainFormat(tokenizer, lead);
}
