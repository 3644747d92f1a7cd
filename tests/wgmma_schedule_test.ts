import { runNative } from "./support/native.ts";

Deno.test("wgmma_schedule.h puts every row and strip into one tile", () =>
  runNative("wgmma_schedule.cc"));
