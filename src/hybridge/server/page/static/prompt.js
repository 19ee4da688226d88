// A prompt → the embeddings that a pipeline takes in its place: their shapes, what was cut off, and the file.
// Of the smallest model also a picture.

import { isDrawable } from './denoiser/weights.js';
import { choices, empty, find, make, saving, word } from './dom.js';
import { draw } from './drawing.js';
import { facts, timeRow, warnings } from './facts.js';
import { text, translate } from './i18n.js';
import { run } from './jobs.js';
import { readSafetensors } from './safetensors.js';
import { modelOf, modelsFor, onServer, server } from './server.js';
import { snippets } from './snippets.js';
import { bytes } from './units.js';
import { Sentence, checkThere, workIn } from './work.js';

/** Shows the section where a model has text encoders. */
export function beginPrompt() {
  const section = find('#prompt');
  const form = find('form', section);
  const { model, prompt, guided, negative, picture } = form.elements;
  const during = workIn(section);

  const show = () => {
    const options = modelOf(model.value)?.text?.options ?? [];
    const takesNegative = options.includes('negative_prompt');
    guided.closest('label').hidden = !takesNegative;
    negative.closest('label').hidden = !(takesNegative && guided.checked);
    picture.closest('label').hidden = !modelOf(model.value)?.text?.needs_picture;
    for (const part of form.querySelectorAll('.drawing')) part.hidden = !isDrawable(modelOf(model.value));
  };
  onServer(() => {
    const models = modelsFor('prompt');
    section.hidden = !models.length;
    choices(model, models.map((one) => [one.name, one.title]));
    show();
  });
  model.addEventListener('change', show);
  guided.addEventListener('change', show);
  find('button.drawing', form).addEventListener('click', () => {
    if (form.reportValidity()) during((tools) => draw(section, modelOf(model.value), prompt.value, tools));
  });
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const asked = { prompt: prompt.value };
    if (!negative.closest('label').hidden) asked.negative_prompt = negative.value;
    const [file] = picture.closest('label').hidden ? [] : picture.files;
    during((tools) => encode(section, modelOf(model.value), asked, file, tools));
  });
}

async function encode(section, model, asked, file, { signal, step }) {
  const request = { body: JSON.stringify(asked), headers: { 'content-type': 'application/json' } };
  if (model.text.needs_picture) {
    if (!file) throw new Sentence('prompt.no-picture');
    const { max_body_bytes: most } = server.limits;
    if (file.size > most) throw new Sentence('error.too-many-bytes', { saw: bytes(file.size), most: bytes(most) });
    await checkThere(file);
    request.body = new FormData();
    request.body.append('request', JSON.stringify(asked));
    request.body.append('image', file);
    request.headers = {};
  }
  const answer = await run(`v1/${model.name}/prompt`, request, step('prompt'), signal);
  const made = await answer.blob();
  const { tensors, about } = await readSafetensors(made);
  const cut = JSON.parse(about.truncated ?? '{}');
  const result = find('.result', section);
  empty(result);
  result.hidden = false;
  result.append(
    make('div', { class: 'scroll', tabindex: 0 }, table(tensors)),
    make(
      'div',
      { class: 'facts' },
      facts([
        ['prompt.cut', () => cutText(cut)],
        ['prompt.kept', () => text(answer.headers.get('hybridge-cache') === 'hit' ? 'prompt.hit' : 'prompt.miss')],
        timeRow('prompt.time', answer),
      ]),
      ...(Object.values(cut).flat().length ? [] : warnings(answer)), // which would say the same
      make('p', { class: 'row' }, saving('save.embeddings', made, 'embeddings.safetensors')),
    ),
    snippets('prompt', { model: model.name, asked, picture: file?.name }),
  );
  translate(result);
}

/** Says which of the prompts were too long for a text encoder. */
function cutText(truncated) {
  const cut = Object.entries(truncated).filter(([, items]) => items.length);
  return cut.length ? text('prompt.was-cut', { names: cut.map(([name]) => name).join(', ') }) : text('prompt.whole');
}

function table(tensors) {
  const head = ['name', 'shape', 'dtype', 'bytes'].map((one) => word(`prompt.${one}`, {}, 'th', { scope: 'col' }));
  const rows = [...tensors].map(([name, { shape, dtype, nbytes }]) =>
    make(
      'tr',
      {},
      make('th', { scope: 'row' }, make('code', {}, name)),
      make('td', {}, shape.join('×')),
      make('td', {}, dtype),
      make('td', {}, bytes(nbytes)),
    ),
  );
  return make('table', {}, make('thead', {}, make('tr', {}, ...head)), make('tbody', {}, ...rows));
}
