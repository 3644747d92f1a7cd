/** A server that speaks as much of the hub's protocol as a download needs, with faults on demand. */
import { createHash } from "node:crypto";

/** What to do with a request for a file's bytes. */
export interface Fault {
  /** Cut the connection after so many bytes of the answer. */
  cutAfter?: number;
  /** Answer with this status. */
  status?: number;
  /** Send the whole file though a range was asked for. */
  ignoreRange?: boolean;
  /** Wait before every piece, in milliseconds. */
  slowly?: number;
}

/** Requests for files, in order. */
export interface Asked {
  path: string;
  range: string | null;
  authorization: string | null;
}

export interface HubServer extends AsyncDisposable {
  url: string;
  commit: string;
  files: Map<string, Uint8Array<ArrayBuffer>>;
  /** Faults still to come, by path, one a request. */
  faults: Map<string, Fault[]>;
  asked: Asked[];
  /** Lies about the hashes of these paths. */
  wrongHashes: Set<string>;
  /** All of the API answers with this status. */
  apiStatus?: number;
  token?: string;
}

const hex = (algorithm: string, ...parts: (string | Uint8Array)[]) =>
  parts.reduce((hash, part) => hash.update(part), createHash(algorithm))
    .digest("hex");

/** Serves one repository, `owner/name`. Files above 1,000 bytes are large ones, behind a redirect. */
export function serveHub(
  files: Map<string, Uint8Array<ArrayBuffer>>,
): HubServer {
  const repo = "owner/name";
  const server: HubServer = {
    url: "",
    commit: "0123456789abcdef0123456789abcdef01234567",
    files,
    faults: new Map(),
    asked: [],
    wrongHashes: new Set(),
    async [Symbol.asyncDispose]() {
      await http.shutdown();
    },
  };
  const http = Deno.serve(
    { port: 0, hostname: "127.0.0.1", onListen() {} },
    (request) => {
      const { pathname } = new URL(request.url);
      const authorization = request.headers.get("authorization");
      if (pathname.startsWith("/api/")) {
        if (server.apiStatus) {
          return Response.json({ error: "no" }, { status: server.apiStatus });
        }
        if (server.token && authorization !== `Bearer ${server.token}`) {
          return Response.json({ error: "Invalid" }, { status: 401 });
        }
      }
      const api = `/api/models/${repo}`;
      if (
        pathname === `${api}/revision/main` ||
        pathname === `${api}/revision/${server.commit}`
      ) {
        return Response.json({
          _id: "1",
          id: repo,
          sha: server.commit,
          lastModified: "2024-05-07T00:00:00.000Z",
        });
      }
      if (pathname === `${api}/tree/${server.commit}`) {
        return Response.json([...server.files].map(([path, bytes]) => {
          const size = bytes.length;
          const lie = server.wrongHashes.has(path) ? "x" : "";
          const oid = hex("sha1", `blob ${size}\0`, bytes, lie);
          return size > 1000
            ? {
              type: "file",
              path,
              size,
              oid,
              lfs: { oid: hex("sha256", bytes, lie), size, pointerSize: 130 },
            }
            : { type: "file", path, size, oid };
        }));
      }
      const [, kind, path] =
        /^\/(cdn|owner\/name\/resolve\/[0-9a-f]+)\/(.+)$/.exec(pathname) ?? [];
      const bytes = path === undefined ? undefined : server.files.get(path);
      if (bytes === undefined) {
        return Response.json({ error: "Not found" }, { status: 404 });
      }
      if (bytes.length > 1000 && kind !== "cdn") {
        return Response.redirect(new URL(`/cdn/${path}`, request.url), 302);
      }
      const range = request.headers.get("range");
      server.asked.push({ path, range, authorization });
      return answer(bytes, range, server.faults.get(path)?.shift() ?? {});
    },
  );
  server.url = `http://127.0.0.1:${http.addr.port}`;
  return server;
}

function answer(
  bytes: Uint8Array<ArrayBuffer>,
  range: string | null,
  { cutAfter, status, ignoreRange, slowly }: Fault,
): Response {
  if (status) return new Response("fault", { status });
  const from = range && !ignoreRange ? Number(/\d+/.exec(range)) : 0;
  const rest = bytes.subarray(from);
  let at = 0;
  const body = new ReadableStream<Uint8Array<ArrayBuffer>>({
    async pull(controller) {
      if (slowly) await new Promise((resolve) => setTimeout(resolve, slowly));
      const end = Math.min(at + 4096, rest.length, cutAfter ?? Infinity);
      if (end > at) controller.enqueue(rest.slice(at, end));
      at = end;
      if (at === rest.length) controller.close();
      else if (at === cutAfter) controller.error(new Error("cut"));
    },
  });
  return new Response(body, {
    status: from > 0 ? 206 : 200,
    headers: from > 0
      ? { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` }
      : {},
  });
}
