// node chat.mjs <folder> <text>: prints the text as a chat, the ids and settings that the folder
// names, and the new ids after the text.

import { basename, dirname } from 'node:path';
import { AutoModelForCausalLM, AutoTokenizer, env } from '@huggingface/transformers';

const [folder, text] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = dirname(folder);

const name = basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name);
const settings = model.generation_config;
const chat = [{ role: 'user', content: text }];
const inputs = tokenizer(text);
const ids = (await model.generate({ ...inputs, max_new_tokens: 4 })).tolist()[0].map(Number);
console.log(
    JSON.stringify({
        rendered: tokenizer.apply_chat_template(chat, { tokenize: false, add_generation_prompt: true }),
        eos: tokenizer.eos_token_id,
        pad: tokenizer.pad_token_id,
        stops: settings.eos_token_id,
        temperature: settings.temperature,
        generated: ids.slice(inputs.input_ids.dims.at(-1)),
    }),
);
