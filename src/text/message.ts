/**
 * What a conversation is made of, and the check that it is one.
 *
 * @module
 */

import { describe } from "../arguments.ts";

/**
 * One message of a conversation. Fields beyond these reach the chat template
 * as they are.
 *
 * @example
 * ```ts
 * import type { Message } from "./message.ts";
 *
 * const messages: Message[] = [{ role: "user", content: "What is 12 + 30?" }];
 * console.assert(messages.length === 1);
 * ```
 */
export interface Message {
  /** `system`, `user`, `assistant` or `tool`. */
  role: string;
  /** The text. In an assistant's message it may be empty beside `tool_calls`. */
  content: string;
  /** Calls that the assistant asks for, in the form the template expects. */
  tool_calls?: readonly unknown[];
  /** Whatever else the template reads. */
  [field: string]: unknown;
}

const ROLES: readonly string[] = ["system", "user", "assistant", "tool"];

function checkMessage(message: unknown, name: string, verb: string): void {
  const fail = (what: string): never => {
    throw new TypeError(`Cannot ${verb}: ${name}${what}`);
  };
  if (
    typeof message !== "object" || message === null || Array.isArray(message)
  ) {
    fail(
      ` is ${describe(message)}, and must be an object with role and content`,
    );
  }
  const { role, content, tool_calls } = message as Record<string, unknown>;
  if (typeof role !== "string" || !ROLES.includes(role)) {
    fail(`.role is ${describe(role)}, and must be one of ${ROLES.join(", ")}`);
  }
  if (typeof content !== "string") {
    fail(`.content is ${describe(content)}, and must be a string`);
  }
  if (tool_calls !== undefined && !Array.isArray(tool_calls)) {
    fail(`.tool_calls is ${describe(tool_calls)}, and must be an array`);
  }
}

/**
 * Checks that `messages` is a conversation.
 *
 * @param messages The value to check.
 * @param verb What cannot be done otherwise, for the error's message.
 * @throws {TypeError} When something has the wrong type, or a role is unknown.
 * @throws {RangeError} When there is no message.
 */
export function checkMessages(
  messages: unknown,
  verb: string,
): asserts messages is readonly Message[] {
  if (!Array.isArray(messages)) {
    throw new TypeError(
      `Cannot ${verb}: messages is ${describe(messages)}, and must be an array`,
    );
  }
  if (messages.length === 0) {
    throw new RangeError(
      `Cannot ${verb}: messages is empty, and must hold at least one message`,
    );
  }
  for (let i = 0; i < messages.length; i++) {
    checkMessage(messages[i], `messages[${i}]`, verb);
  }
}
