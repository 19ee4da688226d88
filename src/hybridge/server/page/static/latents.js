// A file of latents → whose they are → a picture or a film.

import { call } from './api.js';
import { choices, complain, empty, find, make, saving } from './dom.js';
import { dropZone } from './drop.js';
import { facts, timeRow, warnings } from './facts.js';
import { onLanguage, say, text, translate } from './i18n.js';
import { run } from './jobs.js';
import { candidates, openLatents, readLatents } from './latents-file.js';
import { modelOf, modelsFor, onServer, server } from './server.js';
import { snippets } from './snippets.js';
import { bytes } from './units.js';
import { Sentence, explained, workIn } from './work.js';

/** Most numbers of which the server takes statistics. */
const MOST_GUESSED = 2 ** 22;

/** Milliseconds that a guess may take; latents can be decoded without it. */
const GUESS_MS = 20_000;

const count = (shape) => shape.reduce((product, one) => product * one, 1);

/** Shows the section where a model decodes; returns what takes a file. */
export function beginLatents(take) {
  const section = find('#latents');
  const form = find('form', section);
  const during = workIn(section);
  const failure = find('.failure', section);
  const begin = find('button.main', form);
  const field = Object.fromEntries([...form.elements].filter((one) => one.name).map((one) => [one.name, one]));
  let opened = null;
  let latents = null;

  const fill = () => {
    const models = modelsFor('decode');
    section.hidden = !models.length;
    choices(field.model, models.map((one) => [one.name, one.title]));
    choices(field.space, ['pipeline', 'vae'].map((one) => [one, text(`space.${one}`)]));
  };
  onServer(fill);
  onLanguage(fill);

  const showFields = () => {
    form.hidden = !latents;
    if (!latents) return;
    const { shape, dtype, program } = latents;
    const size = `${dtype} ${shape.join('×')}`;
    say(find('.what', form), program ? 'latents.what-of' : 'latents.what', { name: latents.name || latents.file.name, size, program });
    find('.tensor', form).hidden = opened.names.length < 2;
    find('.item', form).hidden = shape[0] < 2 || shape.length < 4;
    for (const side of form.querySelectorAll('.side')) side.hidden = shape.length !== 3;
    find('.fps', form).hidden = !isFilm(modelOf(field.model.value), latents);
    field.item.max = shape[0];
  };

  const read = async (name) => {
    const { nbytes, shape } = opened.tensors.get(name);
    const most = server.limits.max_body_bytes;
    if (nbytes > most) throw new Sentence('error.too-many-bytes', { saw: bytes(nbytes), most: bytes(most) });
    if (shape.length < 3 || !count(shape)) throw new Sentence('guess.none', { shape: shape.join('×') || '1' });
    latents = { ...(await readLatents(opened.file.name, opened, name)), name, file: opened.file };
    await guessing();
  };
  /** Guesses again; the latents stay if that fails, because they can be decoded without a guess. */
  const guessing = async () => {
    complain(failure, null);
    showFields();
    begin.disabled = true; // until model and scaling are chosen
    await guess(latents, field, find('.guess', form)).catch((error) => complain(failure, ...explained(error)));
    begin.disabled = false;
    showFields();
  };
  const reading = (work) =>
    work().catch((error) => {
      latents = null;
      showFields();
      complain(failure, ...explained(error));
    });

  field.tensor.addEventListener('change', () => reading(() => read(field.tensor.value)));
  field.model.addEventListener('change', showFields);
  for (const side of [field.width, field.height]) {
    side.addEventListener('change', () => latents && guessing());
  }
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const wanted = { latents, model: modelOf(field.model.value), space: field.space.value, field };
    during((tools) => decode(section, wanted, tools));
  });

  const accept = '.safetensors,.latent,.npz,.npy';
  const shown = dropZone(find('.drop', section), { accept, text: 'latents.drop', take: (one) => take(one, 'latents') });
  return (file) => {
    shown.textContent = file.name;
    complain(failure, null);
    empty(find('.result', section));
    reading(async () => {
      const whole = await openLatents(file);
      opened = { ...whole, file, names: candidates(whole) };
      choices(field.tensor, opened.names.map((name) => [name, name]), opened.names[0]);
      await read(opened.names[0]);
    });
  };
}

/** Says whose latents these are, by what the file says and the server guesses, and chooses that. */
async function guess(latents, field, said) {
  const { dtype, shape, data, space, model } = latents;
  const one = { shape: [1, ...shape.slice(1)], data: data.subarray(0, data.length / (shape.length > 3 ? shape[0] : 1)) };
  const asked = shape.length > 3 ? one : { shape, data };
  const query = { shape: asked.shape, dtype };
  if (shape.length === 3) Object.assign(query, { height: field.height.value, width: field.width.value });
  let guesses = [];
  if (count(asked.shape) <= MOST_GUESSED) {
    const headers = { 'content-type': 'tensor/binary' };
    const options = { method: 'POST', query, body: asked.data, headers, signal: AbortSignal.timeout(GUESS_MS) };
    ({ guesses } = await (await call('v1/guess', options)).json());
  }
  const here = guesses.filter((one) => one.is_served && (!space || one.is_scaled === (space === 'pipeline')));
  const served = here.length ? here : guesses.filter((one) => one.is_served);
  const chosen = served.find((one) => one.model === model) ?? served[0];
  const fitting = modelsFor('decode').filter((one) => shape.includes(one.latent_channels));
  const named = modelOf(model)?.tasks.includes('decode') ? model : null;
  field.model.value = named ?? chosen?.model ?? fitting[0]?.name ?? field.model.value;
  field.space.value = space ?? (chosen ? (chosen.is_scaled ? 'pipeline' : 'vae') : 'pipeline');
  const [titleOf, elsewhere] = [(name) => modelOf(name)?.title ?? name, guesses.filter((one) => !one.is_served)];
  const values = {
    model: () => titleOf(field.model.value),
    space: () => text(`space.${field.space.value}`),
    rms: chosen?.rms.toFixed(2),
    others: [...new Set(elsewhere.map((one) => one.title))].slice(0, 3).join(', '),
  };
  if (model && space) say(said, named ? 'guess.said' : 'guess.said-elsewhere', { ...values, named: model });
  else if (chosen) say(said, space ? 'guess.model' : 'guess.both', values);
  else if (elsewhere.length) say(said, 'guess.elsewhere', values);
  else say(said, fitting.length ? 'guess.channels' : 'guess.none', { ...values, shape: shape.join('×') });
}

/** Whether latents decode to more than one frame. */
function isFilm(model, { shape }) {
  return model?.axes.includes('T') && shape.length === 5;
}

async function decode(section, { latents, model, space, field }, { signal, step }) {
  const film = isFilm(model, latents);
  const { name, dtype } = latents;
  let { shape, data } = latents;
  if (shape.length > 3 && shape[0] > 1) {
    const bytesOfOne = data.length / shape[0];
    const item = Math.min(Math.max(1, Number(field.item.value)), shape[0]) - 1;
    data = data.subarray(item * bytesOfOne, (item + 1) * bytesOfOne);
    shape = [1, ...shape.slice(1)];
  }
  checkPixels(model, shape);
  const query = { shape, dtype, do_scaling: space === 'pipeline' ? 'True' : 'False' };
  if (shape.length === 3) Object.assign(query, { height: field.height.value, width: field.width.value });
  Object.assign(query, film ? { output_type: 'mp4', fps: field.fps.value } : { output_type: 'pil', image_format: 'png' });
  const headers = { 'content-type': 'tensor/binary', accept: film ? 'video/mp4' : 'image/png' };
  const answer = await run(`v1/${model.name}/decode`, { query, body: data, headers }, step('decode'), signal);
  const file = await answer.blob();
  const url = URL.createObjectURL(file);
  const shown = film
    ? make('video', { src: url, controls: true, loop: true, 'data-label': 'latents.film-alt' })
    : make('img', { src: url, alt: '', 'data-label': 'latents.picture-alt', role: 'img' });
  const result = find('.result', section);
  empty(result);
  result.hidden = false;
  result.append(
    make('div', { class: 'stage-of-one' }, shown),
    make(
      'div',
      { class: 'facts' },
      facts([
        ['model', model.title],
        ['latents.space', () => text(`space.${space}`)],
        ['latents.file', bytes(file.size)],
        timeRow('latents.time', answer),
      ]),
      ...warnings(answer),
      make(
        'p',
        { class: 'row' },
        saving(film ? 'save.film' : 'save.picture', file, film ? 'film.mp4' : 'picture.png'),
        saving('save.numbers', new Blob([data]), 'latents.bin'),
      ),
    ),
    snippets('latents', { model: model.name, file: latents.file.name, name, shape, dtype, space, film }),
  );
  translate(result);
}

/** Refuses here what the server would refuse once it was sent. */
function checkPixels(model, shape) {
  if (shape.length < 4) return;
  const frames = shape.length === 5 ? (shape[model.axes.indexOf('T')] - 1) * (model.temporal_factor ?? 1) + 1 : 1;
  const [height, width] = shape.slice(-2).map((side) => side * model.spatial_factor);
  const most = model.axes.includes('T') ? server.limits.max_video_pixels : server.limits.max_pixels;
  if (frames * height * width > most) {
    throw new Sentence('latents.too-many-pixels', { saw: `${frames > 1 ? `${frames} × ` : ''}${width}×${height}`, most });
  }
}
