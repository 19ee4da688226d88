// A file of latents → whose they are → a picture or a film.

import { choices, complain, empty, find, make, saving } from './dom.js';
import { dropZone } from './drop.js';
import { facts, timeRow, warnings } from './facts.js';
import { guessed } from './guesses.js';
import { onLanguage, say, text, translate } from './i18n.js';
import { run } from './jobs.js';
import { candidates, openLatents, readLatents } from './latents-file.js';
import { modelOf, modelsFor, onServer, server } from './server.js';
import { snippets } from './snippets.js';
import { bytes } from './units.js';
import { Sentence, explained, workIn } from './work.js';

const count = (shape) => shape.reduce((product, one) => product * one, 1);

/** Shows the section where a model decodes; returns what takes a file. */
export function beginLatents(take) {
  const section = find('#latents');
  const form = find('form', section);
  const during = workIn(section);
  const failure = find('.failure', section);
  const field = Object.fromEntries([...form.elements].filter((one) => one.name).map((one) => [one.name, one]));
  const begin = find('button.main', form);
  let chosen = null; // the file that was chosen last; what an earlier one still waits for is dropped
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
    const { file, tensors } = opened;
    const { nbytes, shape } = tensors.get(name);
    const most = server.limits.max_body_bytes;
    if (nbytes > most) throw new Sentence('error.too-many-bytes', { saw: bytes(nbytes), most: bytes(most) });
    if (shape.length < 3 || !count(shape)) throw new Sentence('guess.none', { shape: shape.join('×') || '1' });
    const found = { ...(await readLatents(file.name, opened, name)), name, file };
    if (file !== chosen || name !== field.tensor.value) return;
    latents = found;
    await guess();
  };
  /** Guesses again; the latents stay if that fails, because they can be decoded without a guess. */
  const guess = async () => {
    const mine = latents;
    complain(failure, null);
    showFields();
    begin.disabled = true; // until model and scaling are chosen
    try {
      const { model, space, key, values } = await guessed(mine, { width: field.width.value, height: field.height.value });
      if (mine !== latents) return;
      if (model) field.model.value = model;
      field.space.value = space;
      say(find('.guess', form), key, values);
    } catch (error) {
      if (mine === latents) complain(failure, ...explained(error));
    } finally {
      if (mine === latents) begin.disabled = false;
    }
    showFields();
  };
  const reading = (work) => {
    const mine = chosen;
    return work().catch((error) => {
      if (mine !== chosen) return;
      latents = null;
      showFields();
      complain(failure, ...explained(error));
    });
  };

  field.tensor.addEventListener('change', () => reading(() => read(field.tensor.value)));
  field.model.addEventListener('change', showFields);
  for (const side of [field.width, field.height]) {
    side.addEventListener('change', () => latents && guess());
  }
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const wanted = { latents, model: modelOf(field.model.value), space: field.space.value, field };
    during((tools) => decode(section, wanted, tools));
  });

  const accept = '.safetensors,.latent,.npz,.npy';
  const shown = dropZone(find('.drop', section), { accept, text: 'latents.drop', take: (one) => take(one, 'latents') });
  return (file) => {
    chosen = file;
    during.stop();
    shown.textContent = file.name;
    complain(failure, null);
    empty(find('.result', section));
    reading(async () => {
      const whole = await openLatents(file);
      if (file !== chosen) return;
      opened = { ...whole, file, names: candidates(whole) };
      choices(field.tensor, opened.names.map((name) => [name, name]));
      [field.tensor.value] = opened.names;
      await read(opened.names[0]);
    });
  };
}

/** Whether latents decode to more than one frame. */
function isFilm(model, { shape }) {
  return model?.axes.includes('T') && shape.length === 5;
}

async function decode(section, { latents, model, space, field }, { signal, step }) {
  const film = isFilm(model, latents);
  const { dtype } = latents;
  const { shape, data } = itemOf(latents, Number(field.item.value));
  checkPixels(model, shape);
  const query = { shape, dtype, do_scaling: space === 'pipeline' ? 'True' : 'False' };
  if (shape.length === 3) Object.assign(query, { height: field.height.value, width: field.width.value });
  Object.assign(query, film ? { output_type: 'mp4', fps: field.fps.value } : { output_type: 'pil', image_format: 'png' });
  const headers = { 'content-type': 'tensor/binary', accept: film ? 'video/mp4' : 'image/png' };
  const answer = await run(`v1/${model.name}/decode`, { query, body: data, headers }, step('decode'), signal);
  const file = await answer.blob();
  const result = find('.result', section);
  empty(result);
  result.hidden = false;
  result.append(
    make('div', { class: 'stage-of-one' }, film ? filmOf(file) : pictureOf(file)),
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
    snippets('latents', { model: model.name, file: latents.file.name, name: latents.name, shape, dtype, space, film }),
  );
  translate(result);
}

/** Returns the shape and the bytes of one item of a batch, counted from 1; packed latents are one. */
function itemOf({ shape, data }, number) {
  if (shape.length === 3 || shape[0] === 1) return { shape, data };
  const size = data.length / shape[0];
  const before = Math.min(Math.max(1, number), shape[0]) - 1;
  return { shape: [1, ...shape.slice(1)], data: data.subarray(before * size, (before + 1) * size) };
}

const filmOf = (file) =>
  make('video', { src: URL.createObjectURL(file), controls: true, loop: true, 'data-label': 'latents.film-alt' });

const pictureOf = (file) =>
  make('img', { src: URL.createObjectURL(file), alt: '', 'data-label': 'latents.picture-alt', role: 'img' });

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
