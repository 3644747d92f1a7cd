/**
 * Opens the kernel libraries before any test runs: they are never closed, and one that a test opened
 * would count as a leak of that test. Also for `deno test --doc --preload` of this file.
 */
import { cudaWorks, openLibrary } from "../../ffi/mod.ts";

/** The CPU's, and the CUDA one where it works. */
export function openLibraries() {
  openLibrary();
  cudaWorks();
}

openLibraries();
