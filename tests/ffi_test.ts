import { assert, assertEquals, assertThrows } from "@std/assert";
import { DisposedError, NativeError } from "../mod.ts";
import { Kernels, NativeDevice, NativeModel, openLibrary } from "../ffi/mod.ts";
import { layoutMismatch } from "../ffi/library.ts";
import { Struct } from "../ffi/struct.ts";
import { Op, STRUCTS } from "../ffi/structs.ts";

// Before the tests: a library opened within one counts as a leak of it.
openLibrary();

function libraryLayout(): string {
  const { symbols } = openLibrary();
  const bytes = new Uint8Array(1 << 16);
  const length = Number(symbols.moela_layout(bytes, BigInt(bytes.length)));
  return new TextDecoder().decode(bytes.subarray(0, length));
}

Deno.test("structs lie where the library has them", () => {
  const layout = libraryLayout();
  assertEquals(layoutMismatch(layout), undefined);
  assertEquals(
    Object.keys(JSON.parse(layout)).sort(),
    STRUCTS.map((struct) => struct.name).sort(),
  );
});

Deno.test("layoutMismatch() names the field that moved", () => {
  const layout = JSON.parse(libraryLayout());
  layout.moela_op.fields.kind[0] = 4;
  assertEquals(
    layoutMismatch(JSON.stringify(layout)),
    "moela_op.kind lies at 4, expected 0",
  );
  layout.moela_op.size++;
  assertEquals(
    layoutMismatch(JSON.stringify(layout)),
    `moela_op has ${Op.size + 1} bytes, expected ${Op.size}`,
  );
});

Deno.test("Struct decodes what it encodes", () => {
  const struct = new Struct("test", {
    size: "u32",
    a: "f32",
    b: "u64",
    c: ["i32", 3],
    d: ["char", 5],
  });
  const values = struct.decode(struct.encode({ a: 1.5, b: 7n, c: [1, -2] }));
  assertEquals(values, { size: 40, a: 1.5, b: 7n, c: [1, -2, 0], d: "" });
  assertThrows(() => struct.encode({ c: [1, 2, 3, 4] }), RangeError, "test.c");
});

Deno.test("moela_build_id tells which sources the library was built from", () => {
  assert(/^[0-9a-f]{16}$/.test(openLibrary().buildId), openLibrary().buildId);
});

Deno.test("NativeDevice refuses kernels that are not available", () => {
  assertThrows(
    () => new NativeDevice({ device: "cpu", kernels: "sm90" }),
    NativeError,
    "kernels 'sm90' are not available here",
  );
});

Deno.test("a disposed model and device say so", () => {
  const device = new NativeDevice({ threads: 1 });
  const model = new NativeModel(device);
  model[Symbol.dispose]();
  model[Symbol.dispose]();
  assertThrows(() => model.memory(), DisposedError);
  device[Symbol.dispose]();
  assertThrows(() => device.info(), DisposedError);
});

Deno.test("addProgram() refuses operations that do not fit their operands", () => {
  using kernels = new Kernels({ threads: 1 });
  const w = kernels.tensor(new Float32Array(12), 3, 4);
  assertThrows(
    () =>
      kernels.model.addProgram(
        {
          keepAll: false,
          values: [{ cols: 5n }, { cols: 3n }],
          ops: [{
            kind: 2,
            in: [0, -1, -1, -1],
            out: [1, -1],
            weight: [w.id, -1],
            n: [3, 5],
          }],
        } as unknown as Parameters<typeof kernels.model.addProgram>[0],
        1,
        1,
      ),
    NativeError,
    "a weight has another shape",
  );
});

Deno.test("run() refuses a step that does not fit its program", async () => {
  using kernels = new Kernels({ threads: 1 });
  const table = kernels.tensor(new Float32Array(12), 3, 4);
  let message = "";
  try {
    await kernels.run((p) => ({ outputs: [p.embed(table)] }), {
      rows: 1,
      tokens: [3],
    });
  } catch (error) {
    assert(error instanceof NativeError);
    message = error.message;
  }
  assertEquals(message, "Cannot run the step: a token is out of range");
});
