/** What loading takes of private memory while it converts. */
import { assert, assertEquals } from "@std/assert";
import { shapeConfig } from "../bench/shapes.ts";
import { writeCheckpoint } from "../bench/write_checkpoint.ts";
import { inFolder } from "./support/folder.ts";
import { openLibraries } from "./support/open_library.ts";

openLibraries();

/** V2-Lite's dimensions with few experts and words: 400 million weights. */
const CONFIG = {
  ...shapeConfig("v2-lite", 3),
  vocab_size: 4096,
  n_routed_experts: 16,
  bos_token_id: 0,
  eos_token_id: 1,
};

Deno.test({
  name: "loading in int4 takes at most 1.2 times the result's size",
  ignore: Deno.build.os !== "linux",
  fn: () =>
    inFolder(async (folder) => {
      await writeCheckpoint(`${folder}/bf16`, CONFIG, { dtype: "bf16" });
      // In a process of its own, in which nothing else comes and goes.
      const program = new URL("./support/load_memory.ts", import.meta.url);
      const { code, stdout, stderr } = await new Deno.Command(
        Deno.execPath(),
        { args: ["run", "-A", program.pathname, `${folder}/bf16`] },
      ).output();
      const text = new TextDecoder();
      assertEquals(code, 0, text.decode(stderr));
      const { taken, result } = JSON.parse(text.decode(stdout));
      assert(result > 180e6, `the result has ${result} bytes`);
      assert(
        taken >= result && taken <= 1.2 * result,
        `${taken} bytes for ${result}`,
      );
    }),
});
