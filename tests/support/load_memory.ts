/** A program: loads the checkpoint of its first argument in int4, and writes what that took. */
import { loadModel } from "../../mod.ts";

/** Bytes of this process that no file backs. */
function privateBytes(): number {
  const status = Deno.readTextFileSync("/proc/self/status");
  return 1024 * Number(/RssAnon:\s+(\d+) kB/.exec(status)?.[1]);
}

const before = privateBytes();
let peak = before;
const look = () => peak = Math.max(peak, privateBytes());
const timer = setInterval(look, 2);
await using model = await loadModel(Deno.args[0], {
  weights: "int4",
  device: "cpu",
});
look();
clearInterval(timer);
const { weightsPrivate } = model.inspect().native.memory();
console.log(
  JSON.stringify({ taken: peak - before, result: Number(weightsPrivate) }),
);
