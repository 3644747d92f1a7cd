import { runNative } from "./support/native.ts";

Deno.test("cache_layout.h: what CUDA writes and reads of int6 is what the CPU does", () =>
  runNative("cache_layout.cc"));
