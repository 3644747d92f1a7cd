import { assert, assertEquals } from "@std/assert";
import {
  CacheBusyError,
  CacheFileError,
  CheckpointError,
  DisposedError,
  NativeError,
  OutOfMemoryError,
} from "../src/errors.ts";

Deno.test("errors carry their class name, message and cause", () => {
  const cause = new Error("why");
  for (
    const [name, error] of [
      ["CheckpointError", new CheckpointError("what", { cause })],
      ["CacheFileError", new CacheFileError("what", { cause })],
      ["CacheBusyError", new CacheBusyError("what", { cause })],
      ["DisposedError", new DisposedError("what", { cause })],
      ["NativeError", new NativeError("what", { cause })],
    ] as const
  ) {
    assert(error instanceof Error);
    assertEquals(`${error}`, `${name}: what`);
    assertEquals(error.cause, cause);
  }
});

Deno.test("OutOfMemoryError tells bytes asked and free", () => {
  const error = new OutOfMemoryError("what", { bytesAsked: 8, bytesFree: 3 });
  assertEquals(`${error}`, "OutOfMemoryError: what");
  assertEquals([error.bytesAsked, error.bytesFree], [8, 3]);
});

Deno.test("NativeError tells the status when there is one", () => {
  assertEquals(new NativeError("what", { status: 4 }).status, 4);
  assertEquals(new NativeError("what").status, undefined);
});
