/** What a conversation is made of, as it is kept in the browser. */

/** How answers are drawn; what is absent is the server's own default. */
export interface Sampling {
  temperature?: number;
  top_p?: number;
  max_tokens?: number;
  seed?: number;
  top_k?: number;
  min_p?: number;
  presence_penalty?: number;
  frequency_penalty?: number;
  repetition_penalty?: number;
  stop?: readonly string[];
}

/** What an answer is held to. */
export type Format = "text" | "json_object" | "json_schema";

/** What holds for the next answer of a conversation. */
export interface Settings {
  system: string;
  sampling: Sampling;
  format: Format;
  /** The text of the schema, used where `format` is `json_schema`. */
  schema: string;
  /** Whether answers are asked for with the probabilities of their tokens. */
  probabilities: boolean;
}

/** A token and how likely it was. */
export interface Candidate {
  text: string;
  logprob: number;
}

/** A token of an answer, and the likeliest at its place. */
export interface TokenInfo extends Candidate {
  top: readonly Candidate[];
}

/** What is known of an answer that has ended. */
export interface Stats {
  tokens: number;
  promptTokens: number;
  cachedTokens: number;
  /** From the first piece of text to the last. */
  seconds: number;
}

/** How an answer stands. */
export type State = "writing" | "done" | "length" | "stopped" | "failed";

/** A turn: a node of the conversation's tree. */
export interface Turn {
  id: string;
  /** The turn before it; `""` for a first one. */
  parent: string;
  role: "user" | "assistant";
  text: string;
  /** Of an answer. */
  state?: State;
  error?: string;
  format?: Format;
  seed?: number;
  stats?: Stats;
  tokens?: TokenInfo[];
}

/** A conversation: a tree of turns, of which one branch is shown. */
export interface Conversation {
  id: string;
  title: string;
  /** Milliseconds since 1970. */
  updated: number;
  settings: Settings;
  turns: Turn[];
  /** Which of the turns that follow one is shown: by the id before them, `""` for the first. */
  shown: Record<string, string>;
}
