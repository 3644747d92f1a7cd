/** A model on the Hugging Face hub. */
export interface HubId {
  /** `owner/name` */
  readonly repo: string;
  /** Branch, tag or commit; "main" when none is named. */
  readonly revision: string;
}

const ID = /^([\w-][\w.-]*\/[\w-][\w.-]*?)(?:@([\w][\w./-]*))?$/;

/** Reads `owner/name` or `owner/name@revision`; undefined when it is neither. */
export function parseHubId(text: string): HubId | undefined {
  const match = ID.exec(text);
  if (!match || match[1].length > 96 || text.includes("..")) return undefined;
  return { repo: match[1], revision: match[2] ?? "main" };
}
