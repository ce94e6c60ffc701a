// Formats Lua files: `node format.cjs check FILE...` lists the files that are not formatted, `write` formats them.
// It calls the library, because the package has no program, and its native builds are not in the registry.
const { readFileSync, writeFileSync } = require("node:fs");
const path = require("node:path");
const { createRequire } = require("node:module");

const installed = createRequire(path.join(process.cwd(), "build", "stylua", "package.json"));
const stylua = installed("@johnnymorganz/stylua");

function form() {
  const config = stylua.Config.new();
  config.syntax = stylua.LuaVersion.Lua51;
  config.column_width = 120;
  config.indent_type = stylua.IndentType.Spaces;
  config.indent_width = 2;
  config.quote_style = stylua.QuoteStyle.AutoPreferSingle;
  return config;
}

const [mode, ...files] = process.argv.slice(2);
let changed = 0;
for (const file of files) {
  const text = readFileSync(file, "utf8");
  const formatted = stylua.formatCode(text, form(), undefined, stylua.OutputVerification.Full);
  if (formatted !== text) {
    changed += 1;
    console.log(`${mode === "write" ? "formatted" : "not formatted"}: ${file}`);
    if (mode === "write") writeFileSync(file, formatted);
  }
}
process.exitCode = mode === "write" || changed === 0 ? 0 : 1;
