// Whose latents these are: by what their file says, and by what the server guesses from channels and statistics.

import { call } from './api.js';
import { text } from './i18n.js';
import { modelOf, modelsFor } from './server.js';

/** Most numbers of which the server takes statistics. */
const MOST_GUESSED = 2 ** 22;

/** Milliseconds that a guess may take; latents can be decoded without it. */
const GUESS_MS = 20_000;

const count = (shape) => shape.reduce((product, one) => product * one, 1);

/** Returns {model, space, key, values}: the likeliest model of this server and the space, and the entry of the texts
 * that says why.
 *
 * @param latents as readLatents() returns them; `model` and `space` are what the file says
 * @param size {width, height} of the picture, for packed latents
 */
export async function guessed(latents, size) {
  const guesses = await guessesOf(latents, size);
  const here = likeliest(guesses, latents);
  const elsewhere = [...new Set(guesses.filter((one) => !one.is_served).map((one) => one.title))].slice(0, 3);
  const fitting = modelsFor('decode').filter((one) => latents.shape.includes(one.latent_channels));
  const named = modelOf(latents.model)?.tasks.includes('decode') ? latents.model : null;
  const model = named ?? here?.model ?? fitting[0]?.name;
  const space = latents.space ?? (here && !here.is_scaled ? 'vae' : 'pipeline');
  const values = {
    named: latents.model,
    model: modelOf(model)?.title ?? model,
    space: () => text(`space.${space}`),
    rms: here?.rms.toFixed(2),
    others: elsewhere.join(', '),
    shape: latents.shape.join('×'),
  };
  return { model, space, values, key: `guess.${reason()}` };

  function reason() {
    if (latents.model && latents.space) return named ? 'said' : 'said-elsewhere';
    if (here) return latents.space ? 'model' : 'both';
    if (elsewhere.length) return 'elsewhere';
    return fitting.length ? 'channels' : 'none';
  }
}

/** Returns the server's guesses for the first item of a batch, the likeliest first; none for more numbers than it takes. */
async function guessesOf({ dtype, shape, data }, size) {
  const isPacked = shape.length === 3;
  const items = isPacked ? 1 : shape[0];
  const query = { shape: isPacked ? shape : [1, ...shape.slice(1)], dtype, ...(isPacked ? size : {}) };
  if (count(query.shape) > MOST_GUESSED) return [];
  const body = data.subarray(0, data.length / items);
  const headers = { 'content-type': 'tensor/binary' };
  const answer = await call('v1/guess', { method: 'POST', query, body, headers, signal: AbortSignal.timeout(GUESS_MS) });
  return (await answer.json()).guesses;
}

/** Returns the guess for a model of this server that agrees best with what the file says, or undefined. */
function likeliest(guesses, { model, space }) {
  const served = guesses.filter((one) => one.is_served);
  const agreeing = served.filter((one) => !space || one.is_scaled === (space === 'pipeline'));
  const best = agreeing.length ? agreeing : served;
  return best.find((one) => one.model === model) ?? best[0];
}
