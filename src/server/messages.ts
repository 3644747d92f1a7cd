/**
 * Messages of a chat request.
 *
 * @module
 */
import { badField } from "./error.ts";
import { Fields } from "./fields.ts";

/** A call that an assistant's message asked for. */
export interface ToolCall {
  id: string;
  name: string;
  /** JSON. */
  arguments: string;
}

/** A message as a client sent it. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool";
  content: string;
  calls: readonly ToolCall[];
  /** In a tool's message: the call that it answers. */
  callId?: string;
}

const ROLES = [
  "system",
  "developer",
  "user",
  "assistant",
  "tool",
] as const;

/** The text of `content`: a string, or parts of type text. */
function contentOf(message: Fields, optional: boolean): string {
  const content = message.value("content");
  if (typeof content === "string") return content;
  if (content === undefined && optional) return "";
  if (!Array.isArray(content)) {
    message.required("content", content);
    return message.fail("content", "a string or an array of parts");
  }
  return content.map((each: unknown, i) => {
    const part = new Fields(each, `${message.path("content")}[${i}]`);
    const type = part.required("type", part.string("type"));
    if (type === "refusal") {
      return part.required("refusal", part.string("refusal"));
    }
    if (type !== "text") {
      part.fail("type", "'text': this model reads only text");
    }
    return part.required("text", part.string("text"));
  }).join("");
}

function toolCalls(message: Fields): ToolCall[] {
  return (message.array("tool_calls") ?? []).map((each, i) => {
    const call = new Fields(each, `${message.path("tool_calls")}[${i}]`);
    if ((call.string("type") ?? "function") !== "function") {
      call.fail("type", "'function'");
    }
    const called = call.required("function", call.fields("function"));
    return {
      id: call.string("id") ?? "",
      name: called.required("name", called.string("name")),
      arguments: called.string("arguments") ?? "{}",
    };
  });
}

/**
 * Reads them.
 *
 * @throws ApiError 400
 */
export function readMessages(request: Fields): ChatMessage[] {
  const list = request.required("messages", request.array("messages"));
  if (list.length === 0) {
    throw badField("messages", list, "an array of at least one message");
  }
  return list.map((each, i) => {
    const message = new Fields(each, `messages[${i}]`);
    const role = message.required("role", message.oneOf("role", ROLES));
    const calls = role === "assistant" ? toolCalls(message) : [];
    return {
      role: role === "developer" ? "system" : role,
      content: contentOf(message, role === "assistant"),
      calls,
      ...role === "tool"
        ? { callId: message.string("tool_call_id") ?? "" }
        : {},
    };
  });
}
