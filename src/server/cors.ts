/**
 * What pages of other origins may do.
 *
 * @module
 */

/** Lets a page read the answer, when its origin is among those allowed. */
export function allowOrigin(
  request: Request,
  response: Response,
  origins: readonly string[],
) {
  if (origins.length === 0) return;
  const { headers } = response;
  headers.append("vary", "origin");
  const origin = request.headers.get("origin");
  if (origin === null) return;
  if (origins.includes("*")) headers.set("access-control-allow-origin", "*");
  else if (origins.includes(origin)) {
    headers.set("access-control-allow-origin", origin);
  } else return;
  headers.set("access-control-expose-headers", "x-request-id, retry-after");
}

/** The answer to what a browser asks before a request; {@link allowOrigin} completes it. */
export function preflight(request: Request): Response {
  const asked = request.headers.get("access-control-request-headers");
  return new Response(null, {
    status: 204,
    headers: {
      "access-control-allow-methods": "GET, POST",
      "access-control-allow-headers": asked ?? "authorization, content-type",
      "access-control-max-age": "600",
    },
  });
}
