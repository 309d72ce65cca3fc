// Reads a JSON list of YAML texts from standard input, and writes a JSON list of what they hold.
const fs = require("fs");
const yaml = require("js-yaml");

const texts = JSON.parse(fs.readFileSync(0, "utf-8"));
process.stdout.write(JSON.stringify(texts.map((text) => yaml.load(text))));
