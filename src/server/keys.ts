/**
 * API keys.
 *
 * @module
 */
import { createHash, timingSafeEqual } from "node:crypto";
import { ApiError } from "./error.ts";

const digest = (text: string) => createHash("sha256").update(text).digest();

/** The keys that open the server; without any it is open. */
export class Keys {
  readonly #digests: readonly Uint8Array[];

  constructor(keys: readonly string[]) {
    if (keys.some((key) => typeof key !== "string" || key === "")) {
      throw new TypeError(
        "Cannot create a handler: apiKeys must be strings, none of them empty",
      );
    }
    this.#digests = keys.map(digest);
  }

  /**
   * Takes the same time whatever the key: digests are compared, all of them and to their end.
   *
   * @throws ApiError 401
   */
  check(request: Request) {
    if (this.#digests.length === 0) return;
    const header = request.headers.get("authorization") ?? "";
    const given = digest(/^Bearer +(.+)$/i.exec(header)?.[1].trim() ?? "");
    let found = false;
    for (const each of this.#digests) {
      found = timingSafeEqual(each, given) || found;
    }
    if (found) return;
    throw new ApiError(
      401,
      header === ""
        ? "No API key was given: send it as 'Authorization: Bearer KEY'"
        : "The API key is not right",
      {
        code: "invalid_api_key",
        headers: { "www-authenticate": "Bearer", connection: "close" },
      },
    );
  }
}
