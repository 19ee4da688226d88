// The denoisers that a browser is fast enough for, and their weights.

import { call } from '../api.js';
import { readSafetensors } from '../safetensors.js';

/** Files of weights by the name of a model, next to the page. */
const FILES = { starter: 'page/starter-unet.safetensors' };

const loading = new Map();

/** Returns whether pictures can be made with a model of this server: it reads prompts, decodes, and is small. */
export const isDrawable = (model) => Boolean(model) && model.name in FILES && ['prompt', 'decode'].every((task) => model.tasks.includes(task));

/** Returns the weights of a model's denoiser, name → {data, shape}; they are fetched once. */
export function weightsOf(model) {
  if (!loading.has(model.name)) {
    const weights = fetched(FILES[model.name]);
    weights.catch(() => loading.delete(model.name));
    loading.set(model.name, weights);
  }
  return loading.get(model.name);
}

async function fetched(path) {
  return toNumbers((await readSafetensors(await (await call(path)).blob())).tensors);
}

/** Returns tensors of a file of safetensors as Float32Arrays, name → {data, shape}. */
export async function toNumbers(tensors) {
  const read = async ([name, { dtype, shape, read: bytes }]) => [name, { data: toFloat32(await bytes(), dtype), shape }];
  return new Map(await Promise.all([...tensors].map(read)));
}

function toFloat32({ buffer }, dtype) {
  if (dtype === 'float32') return new Float32Array(buffer);
  const words = new Uint16Array(buffer);
  if (dtype === 'bfloat16') return new Float32Array(Uint32Array.from(words, (word) => word << 16).buffer);
  return Float32Array.from(words, fromHalf);
}

/** Returns the number that the 16 bits of a float16 are. */
function fromHalf(word) {
  const [sign, exponent, fraction] = [word >> 15 ? -1 : 1, (word >> 10) & 31, word & 1023];
  if (exponent === 0) return (sign * fraction) / 2 ** 24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}
