// Starts aimock on a free port: aimock.mjs PACKAGE OPTIONS [FIXTURES...]. Prints its URL; ends with its standard input.
import { pathToFileURL } from "node:url";

const [home, options, ...fixtures] = process.argv.slice(2);
const { LLMock } = await import(pathToFileURL(`${home}/dist/index.js`));
const mock = new LLMock({ port: 0, ...JSON.parse(options) });
for (const file of fixtures) mock.loadFixtureFile(file);
await mock.start();
console.log(mock.url);
process.stdin.on("end", () => process.exit(0)).resume();
