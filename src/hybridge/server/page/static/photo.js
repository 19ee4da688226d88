// Photograph → encode → decode → how much of it came back.

import { comparison } from './compare.js';
import { choices, empty, find, make, saving } from './dom.js';
import { dropZone } from './drop.js';
import { facts, timeRow, warnings } from './facts.js';
import { onLanguage, text, translate } from './i18n.js';
import { run } from './jobs.js';
import { drawn, fitted, png, psnr, readPicture } from './picture.js';
import { writeSafetensors } from './safetensors.js';
import { modelOf, modelsFor, onServer, server } from './server.js';
import { snippets } from './snippets.js';
import { bytes } from './units.js';
import { Sentence, workIn } from './work.js';

const SIDES = [256, 512, 768, 1024, 1536, 2048, 3072, 4096];

/** Longest side to begin with: on a processor a picture of 1024 pixels can take a minute. */
const usualSide = (model) => (model?.device === 'cpu' ? 512 : 1024);

/** Shows the section where a model encodes and decodes; returns what takes a file. */
export function beginPhoto(take) {
  const section = find('#photo');
  const model = find('select[name=model]', section);
  const size = find('select[name=size]', section);
  const during = workIn(section);
  let file = null;

  const fill = () => {
    const models = modelsFor('encode', 'decode');
    section.hidden = !models.length;
    choices(model, models.map((one) => [one.name, one.title]));
    const most = mostPixels(modelOf(model.value));
    const sides = SIDES.filter((side) => side === SIDES[0] || side * side <= most);
    const usual = Math.min(usualSide(modelOf(model.value)), sides.at(-1));
    choices(size, sides.map((side) => [String(side), text('photo.up-to', { side })]), size.value || String(usual));
  };
  onServer(fill);
  onLanguage(fill);

  const start = () => {
    if (!file) return;
    const wanted = { file, model: modelOf(model.value), longest: Number(size.value) };
    during((tools) => roundTrip(section, wanted, tools));
  };
  model.addEventListener('change', () => (fill(), start()));
  size.addEventListener('change', start);
  const shown = dropZone(find('.drop', section), { accept: 'image/*', text: 'photo.drop', take: (one) => take(one, 'photo') });
  return (one) => {
    file = one;
    shown.textContent = one.name;
    start();
  };
}

const mostPixels = (model) =>
  (model?.axes.includes('T') ? server.limits.max_video_pixels : server.limits.max_pixels) ?? 2048 ** 2;

async function roundTrip(section, { file, model, longest }, { signal, step }) {
  const picture = await readPicture(file);
  const before = fitted(picture, { longest, most: mostPixels(model), multiple: model.spatial_factor });
  const sent = await png(before);
  if (sent.size > server.limits.max_body_bytes) {
    throw new Sentence('error.too-many-bytes', { saw: bytes(sent.size), most: bytes(server.limits.max_body_bytes) });
  }
  signal.throwIfAborted();
  const encoded = await encode(model, sent, step('encode'), signal);
  const decoded = await decode(model, encoded.latents, step('decode'), signal);
  const after = drawn(await createImageBitmap(decoded.file));
  show(section, { file, model, picture, before, after, encoded, decoded });
}

/** Returns the answer, and the latents in it as {shape, dtype, data}. */
async function encode(model, picture, hear, signal) {
  const headers = { 'content-type': 'image/png', accept: 'tensor/binary' };
  const answer = await run(`v1/${model.name}/encode`, { body: picture, headers }, hear, signal);
  const data = new Uint8Array(await answer.arrayBuffer());
  return { answer, latents: { shape: JSON.parse(answer.headers.get('shape')), dtype: answer.headers.get('dtype'), data } };
}

/** Returns the answer, and the PNG in it. */
async function decode(model, { shape, dtype, data }, hear, signal) {
  const query = { shape, dtype, output_type: 'pil', image_format: 'png' };
  const headers = { 'content-type': 'tensor/binary', accept: 'image/png' };
  const answer = await run(`v1/${model.name}/decode`, { query, body: data, headers }, hear, signal);
  return { answer, file: await answer.blob() };
}

function show(section, { file, model, picture, before, after, encoded, decoded }) {
  const { latents } = encoded;
  const used = `${before.width}×${before.height}`;
  const whole = `${picture.width}×${picture.height}`;
  // Some decoders make a larger picture than was encoded.
  const isLarger = before.width !== after.width || before.height !== after.height;
  const compared = isLarger ? drawn(before, after) : before;
  const result = find('.result', section);
  empty(result);
  result.hidden = false;
  result.append(
    comparison(compared, after),
    make(
      'div',
      { class: 'facts' },
      facts([
        ['photo.psnr', `${psnr(compared, after).toFixed(1)} dB`, 'photo.psnr-note'],
        ['photo.latents', `${latents.shape.join('×')} ${latents.dtype}, ${bytes(latents.data.length)}`],
        ['photo.pixels', whole === used ? used : () => text('photo.scaled', { used, whole })],
        timeRow('photo.time', encoded.answer, decoded.answer),
      ]),
      ...warnings(decoded.answer),
      make(
        'p',
        { class: 'row' },
        saving('save.picture', decoded.file, 'picture.png'),
        saving('save.latents', writeSafetensors(latents, { model: model.name, space: 'vae' }), 'latents.safetensors'),
      ),
    ),
    snippets('photo', { model: model.name, name: file.name, type: file.type, latents }),
  );
  translate(result);
}
