/** Checkpoint folders for one test, and changes to their files. */

import {
  readSafetensors,
  type TestTensor,
  writeSafetensors,
} from "./safetensors.ts";

/** Runs a test with a folder of its own, and removes it. */
export async function inFolder(test: (folder: string) => Promise<void>) {
  const folder = await Deno.makeTempDir();
  try {
    await test(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

/** Rewrites a folder's single file with other tensors. */
export async function changeTensors(
  folder: string,
  change: (tensors: Map<string, TestTensor>) => void,
) {
  const path = `${folder}/model.safetensors`;
  const tensors = await readSafetensors(path);
  change(tensors);
  await writeSafetensors(path, tensors);
}

/** Rewrites a JSON file. */
export async function changeJson(
  path: string,
  change: (json: Record<string, unknown>) => void,
) {
  const json = JSON.parse(await Deno.readTextFile(path));
  change(json);
  await Deno.writeTextFile(path, JSON.stringify(json));
}

/** A tensor of zeros. */
export function zeros(
  shape: number[],
  dtype: TestTensor["dtype"] = "F32",
): TestTensor {
  const count = shape.reduce((product, n) => product * n, 1);
  return { dtype, shape, data: new Float32Array(count) };
}
