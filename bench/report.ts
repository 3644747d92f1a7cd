/**
 * What every benchmark writes: rows with machine, commit and shape, as CSV and as a table.
 *
 * @module
 */

/** A row of results, by column. */
export type Row = Readonly<Record<string, string | number>>;

/** Writes `bench/results/NAME.csv`; the columns are those of the first row. */
export async function writeCsv(
  name: string,
  rows: readonly Row[],
): Promise<string> {
  const cell = (value: string | number) => {
    const text = String(value);
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const columns = Object.keys(rows[0]);
  const lines = [
    columns.join(","),
    ...rows.map((row) => columns.map((column) => cell(row[column])).join(",")),
  ];
  const folder = new URL("./results/", import.meta.url);
  await Deno.mkdir(folder, { recursive: true });
  await Deno.writeTextFile(
    new URL(`${name}.csv`, folder),
    lines.join("\n") + "\n",
  );
  return `bench/results/${name}.csv`;
}

/** Prints some columns, aligned. */
export function printTable(rows: readonly Row[], columns: readonly string[]) {
  const cells = [
    columns,
    ...rows.map((row) => columns.map((c) => `${row[c]}`)),
  ];
  const widths = columns.map((_, i) =>
    Math.max(...cells.map((line) => line[i].length))
  );
  for (const line of cells) {
    console.log(line.map((text, i) => text.padStart(widths[i])).join("  "));
  }
}

/** The commit at hand, with "+" when the tree differs from it. */
async function commit(): Promise<string> {
  const git = async (...args: string[]) => {
    const { success, stdout } = await new Deno.Command("git", {
      args,
      cwd: new URL("../", import.meta.url),
      stderr: "null",
    }).output();
    return success ? new TextDecoder().decode(stdout).trim() : undefined;
  };
  try {
    const head = await git("rev-parse", "--short=12", "HEAD");
    if (head === undefined) return "unknown";
    // Results of earlier runs are no difference.
    const changes = await git(
      "status",
      "--porcelain",
      "-uno",
      "--",
      ".",
      ":!bench/results",
    );
    return changes ? `${head}+` : head;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return "unknown";
    throw error;
  }
}

/** Where a benchmark runs: the columns `machine` and `commit`. */
export async function provenance(): Promise<Row> {
  const { os, arch } = Deno.build;
  const memory = Deno.systemMemoryInfo().total / 2 ** 30;
  const cpus = navigator.hardwareConcurrency;
  return {
    machine: `${os} ${arch} ${cpus} CPUs ${memory.toFixed(0)} GiB`,
    commit: await commit(),
  };
}

/** The largest resident set so far in bytes, mapped files included; 0 where it is not told. */
export async function peakRss(): Promise<number> {
  try {
    const status = await Deno.readTextFile("/proc/self/status");
    return Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return 0;
    throw error;
  }
}

/** The middle of a few numbers, or the mean of the two in the middle. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1
    ? sorted[half]
    : (sorted[half - 1] + sorted[half]) / 2;
}
