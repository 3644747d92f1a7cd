/** The settings that a new conversation begins with, and the checks of what is typed. */
import type { Settings } from "./types.ts";

const KEY = "moela.settings";

const SCHEMA = JSON.stringify(
  {
    type: "object",
    properties: {
      answer: { type: "integer" },
      sure: { type: "boolean" },
    },
    required: ["answer", "sure"],
    additionalProperties: false,
  },
  null,
  2,
);

const DEFAULTS: Settings = {
  system: "",
  sampling: {},
  format: "text",
  schema: SCHEMA,
  probabilities: false,
};

/** Those of the last conversation, but for the format: a chat begins as text. */
export function lastSettings(): Settings {
  let kept: Partial<Settings> = {};
  try {
    kept = JSON.parse(localStorage.getItem(KEY) ?? "{}");
  } catch {
    // Not ours, or no storage: the defaults hold.
  }
  return { ...DEFAULTS, ...kept, format: "text" };
}

/** Keeps settings for the next conversation. */
export function keepSettings(settings: Settings) {
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch {
    // Without storage the next conversation begins with the defaults.
  }
}

/** What is wrong with the text of a schema; undefined when nothing is. */
export function schemaProblem(text: string): string | undefined {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return `This is not JSON: ${(error as Error).message}`;
  }
  const object = typeof value === "object" && value !== null &&
    !Array.isArray(value);
  return object ? undefined : "A schema must be a JSON object";
}

const API_KEY = "moela.apiKey";

/** The API key: for this tab, and until it is closed. */
export const apiKey = {
  get(): string {
    try {
      return sessionStorage.getItem(API_KEY) ?? "";
    } catch {
      return "";
    }
  },
  set(key: string) {
    try {
      if (key === "") sessionStorage.removeItem(API_KEY);
      else sessionStorage.setItem(API_KEY, key);
    } catch {
      // The field still holds it.
    }
  },
};
