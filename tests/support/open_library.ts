/**
 * Opens the kernel library before any test runs: `deno test --doc --preload` of this file. The
 * library is never closed, and one that an example opened would count as a leak of that example.
 */
import { openLibrary } from "../../ffi/mod.ts";

openLibrary();
