// From noise and a prompt's embeddings to latents, in this browser: DDIM, as diffusers' DDIMScheduler computes it.

import { makeUnet } from './unet.js';

/** How the noise grows over the timesteps on which the model was trained. */
const TRAINED = { steps: 1000, begin: 0.00085, end: 0.012 };

/** The shape of the model's latents. */
const LATENTS = { channels: 4, height: 16, width: 16 };

/** Returns the shares of the picture's variance that are left at each timestep, of which the last is 0. */
function shares() {
  const { steps, begin, end } = TRAINED;
  const roots = [];
  let product = 1;
  for (let step = 0; step < steps; step += 1) {
    const beta = (Math.sqrt(begin) + ((Math.sqrt(end) - Math.sqrt(begin)) * step) / (steps - 1)) ** 2;
    product *= 1 - beta;
    roots.push(Math.sqrt(product));
  }
  const [first, last] = [roots[0], roots[steps - 1]];
  return roots.map((root) => (((root - last) * first) / (first - last)) ** 2);
}

/** Returns latents of noise. */
export function noise() {
  const count = LATENTS.channels * LATENTS.height * LATENTS.width;
  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  return Float32Array.from({ length: count }, normal);
}

/** Returns latents, scaled as pipelines have them, after some steps.
 *
 * @param tensors the weights of the UNet: name → {data, shape}
 * @param embeddings {data, count, width}, a token for each of the prompt's
 * @param begun latents of noise
 * @param hear called before each step with the share that is done; awaited, so that the page can draw and cancel
 */
export async function denoise(tensors, embeddings, begun, steps, hear) {
  const unet = makeUnet(tensors);
  const left = shares();
  let latents = { ...LATENTS, data: begun };
  for (let step = 0; step < steps; step += 1) {
    await hear(step / steps);
    const timestep = Math.round(TRAINED.steps * (1 - step / steps)) - 1;
    const next = timestep - Math.floor(TRAINED.steps / steps);
    const predicted = unet(latents, timestep, embeddings).data;
    const [now, then] = [left[timestep], next < 0 ? 1 : left[next]];
    const data = latents.data.map((value, at) => {
      const picture = Math.sqrt(now) * value - Math.sqrt(1 - now) * predicted[at];
      const rest = Math.sqrt(now) * predicted[at] + Math.sqrt(1 - now) * value;
      return Math.sqrt(then) * picture + Math.sqrt(1 - then) * rest;
    });
    latents = { ...latents, data };
  }
  return { shape: [1, LATENTS.channels, LATENTS.height, LATENTS.width], dtype: 'float32', data: new Uint8Array(latents.data.buffer) };
}
