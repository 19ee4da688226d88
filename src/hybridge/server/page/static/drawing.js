// A prompt → a picture, with the model whose denoiser is small enough for a browser: the server reads the prompt and
// decodes the latents, and this page computes what lies between.

import { denoise, noise } from './denoiser/denoise.js';
import { toNumbers, weightsOf } from './denoiser/weights.js';
import { empty, find, make, saving } from './dom.js';
import { facts, timeRow, warnings } from './facts.js';
import { text, translate } from './i18n.js';
import { run } from './jobs.js';
import { readSafetensors } from './safetensors.js';
import { snippets } from './snippets.js';
import { seconds } from './units.js';

/** As many as the model needs; more make its pictures no better. */
const STEPS = 10;

/** Draws a prompt and shows the picture. */
export async function draw(section, model, prompt, { signal, step }) {
  const weights = await weightsOf(model);
  const read = await run(
    `v1/${model.name}/prompt`,
    { body: JSON.stringify({ prompt }), headers: { 'content-type': 'application/json' } },
    step('prompt'),
    signal,
  );
  const embeddings = (await toNumbers((await readSafetensors(await read.blob())).tensors)).get('prompt_embeds');
  const [, count, width] = embeddings.shape;
  const hear = step('denoise');
  const begun = performance.now();
  const latents = await denoise(weights, { data: embeddings.data, count, width }, noise(), STEPS, async (progress) => {
    hear({ state: 'running', progress });
    await new Promise((done) => setTimeout(done)); // so that the page shows it, and can be clicked on
    signal.throwIfAborted();
  });
  const took = (performance.now() - begun) / 1000;
  const query = { shape: latents.shape, dtype: latents.dtype, do_scaling: 'True', output_type: 'pil', image_format: 'png' };
  const headers = { 'content-type': 'tensor/binary', accept: 'image/png' };
  const decoded = await run(`v1/${model.name}/decode`, { query, body: latents.data, headers }, step('decode'), signal);
  show(section, { model, prompt, read, took, decoded, file: await decoded.blob() });
}

function show(section, { model, prompt, read, took, decoded, file }) {
  const result = find('.result', section);
  empty(result);
  result.hidden = false;
  const picture = make('img', { src: URL.createObjectURL(file), alt: prompt, class: 'drawn' });
  result.append(
    make('div', { class: 'stage-of-one' }, picture),
    make(
      'div',
      { class: 'facts' },
      facts([
        timeRow('drawing.read', read),
        ['drawing.denoised', () => text('drawing.steps', { steps: STEPS, time: seconds(took) }), 'drawing.here'],
        timeRow('drawing.decoded', decoded),
      ]),
      ...warnings(read),
      make('p', { class: 'row' }, saving('save.picture', file, 'picture.png')),
    ),
    snippets('prompt', { model: model.name, asked: { prompt } }),
  );
  translate(result);
}
