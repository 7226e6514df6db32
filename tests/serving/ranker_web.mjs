// node ranker_web.mjs PACKAGE MODEL INPUTS: runs the graph by onnxruntime-web's WebAssembly and
// prints {"logit": [...], "probability": [...]}. INPUTS: JSON, {name: {type, dims, data}}.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
import { createRequire } from "node:module";

const [folder, model, inputs] = process.argv.slice(2);
const found = createRequire(folder + "/").resolve("onnxruntime-web");
const module = await import(pathToFileURL(found).href);
const ort = module.default ?? module;
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), {
  executionProviders: ["wasm"],
});
const kinds = { int32: Int32Array, float32: Float32Array };
const feeds = {};
for (const [name, { type, dims, data }] of Object.entries(JSON.parse(readFileSync(inputs)))) {
  feeds[name] = new ort.Tensor(type, kinds[type].from(data), dims);
}
const said = await session.run(feeds);
const out = {};
for (const name of ["logit", "probability"]) out[name] = Array.from(said[name].data);
console.log(JSON.stringify(out));
