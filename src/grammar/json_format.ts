/**
 * The values of JSON schema's `format` that can be enforced.
 *
 * @module
 */

/** Days of each month; February's 29th only in leap years. */
const DATE = "(?:" + [
  "[0-9]{4}-(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])",
  "[0-9]{4}-(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)",
  "[0-9]{4}-02-(?:0[1-9]|1[0-9]|2[0-8])",
  "[0-9]{2}(?:0[48]|[2468][048]|[13579][26])-02-29",
  "(?:[02468][048]|[13579][26])00-02-29",
].join("|") + ")";
const HOUR = "(?:[01][0-9]|2[0-3])";
const TIME = `${HOUR}:[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?` +
  `(?:Z|[+-]${HOUR}:[0-5][0-9])`;
const LABEL = "[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?";
const OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
const HEX = "[0-9a-f]";

/** Each as a regular expression for the whole string, of ASCII only. */
export const FORMATS: ReadonlyMap<string, string> = new Map([
  ["date", DATE],
  ["time", TIME],
  ["date-time", `${DATE}T${TIME}`],
  [
    "email",
    "[a-zA-Z0-9]{1,16}(?:[._+-][a-zA-Z0-9]{1,16}){0,3}@" +
    `${LABEL}(?:\\.${LABEL}){1,3}`,
  ],
  ["uuid", `${HEX}{8}-${HEX}{4}-${HEX}{4}-${HEX}{4}-${HEX}{12}`],
  ["ipv4", `${OCTET}(?:\\.${OCTET}){3}`],
]);
