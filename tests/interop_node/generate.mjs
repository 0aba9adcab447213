// node generate.mjs <folder> <texts.json> <new tokens>: prints the new ids of each text, once from
// the text alone and once from all texts as one left-padded batch.

import { readFileSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { AutoModelForCausalLM, AutoTokenizer, env } from '@huggingface/transformers';

const [folder, texts, count] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);

const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
const options = { max_new_tokens: Number(count), do_sample: false };

async function generate(inputs) {
    const length = inputs.input_ids.dims.at(-1);
    const ids = (await model.generate({ ...inputs, ...options })).tolist();
    return ids.map((row) => row.slice(length).map(Number));
}

const given = JSON.parse(readFileSync(texts, 'utf8'));
const prompts = [];
const alone = [];
for (const text of given) {
    const inputs = tokenizer(text);
    prompts.push(inputs.input_ids.tolist()[0].map(Number));
    alone.push((await generate(inputs))[0]);
}
const batch = await generate(tokenizer(given, { padding: true }));
console.log(JSON.stringify({ inputs: model.sessions.model.inputNames, prompts, alone, batch }));
