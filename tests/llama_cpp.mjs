// The next token of each prompt by llama.cpp: node llama_cpp.mjs MODULES MODEL.gguf PROMPTS.json, where PROMPTS.json holds lists
// of token ids. Prints a JSON list of {token, probabilities}: the sixteen likeliest by token id.
import fs from "fs";
import path from "path";
import {pathToFileURL} from "url";

const [modules, modelPath, promptsPath] = process.argv.slice(2);
const {getLlama} = await import(pathToFileURL(path.join(modules, "node-llama-cpp", "dist", "index.js")).href);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath});
const out = [];
for (const ids of JSON.parse(fs.readFileSync(promptsPath, "utf8"))) {
    const context = await model.createContext({contextSize: 128});
    const asked = {generateNext: {logits: true, options: {temperature: 1, topK: 0, topP: 1, minP: 0}}};
    const input = ids.map((id, at) => (at === ids.length - 1 ? [id, asked] : id));
    const {next} = (await context.getSequence().controlledEvaluate(input)).pop();
    const ordered = [...next.logits].sort((a, b) => b[1] - a[1]);
    const exponents = ordered.map(([id, logit]) => [id, Math.exp(logit - ordered[0][1])]);
    const total = exponents.reduce((sum, [, value]) => sum + value, 0);
    const probabilities = exponents.slice(0, 16).map(([id, value]) => [id, value / total]);
    out.push({token: ordered[0][0], probabilities: Object.fromEntries(probabilities)});
    await context.dispose();
}
console.log(JSON.stringify(out));
process.exit(0);
