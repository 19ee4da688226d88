// Latents in files of several programs: which tensor they are, and in which space.
// These are the rules of hybridge.protocol.read_latents, with which a test compares them.

import { readNpy, readNpz } from './numpy-files.js';
import { readSafetensors } from './safetensors.js';
import { Sentence } from './work.js';

const MUSUBI = /^latents_(\d+)x(\d+)x(\d+)_\w+$/;
const KOHYA = /^latents(?:_flipped)?(?:_(\d+)x(\d+))?$/;
const BESIDE = ['original_size', 'crop_ltrb'];
const FLOATS = ['float64', 'float32', 'float16', 'bfloat16'];

/** What ComfyUI multiplied the latents of all models by before it wrote its marker. */
const COMFY_FACTOR = 0.18215;

/** Returns an open file: {form, tensors, about}; throws Sentence. */
export async function openLatents(file) {
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  const begins = (text) => [...text].every((one, index) => start[index] === one.charCodeAt(0));
  if (file.size === 0) throw new Sentence('latents.damaged');
  if (/\.(pt|pth|ckpt|bin)$/i.test(file.name)) throw new Sentence('latents.pickle', { name: file.name });
  if (begins('\x93NUMPY')) return readNpy(file);
  if (begins('PK')) return readNpz(file);
  return readSafetensors(file);
}

/** Returns the names of the tensors that may be latents, the likeliest first; throws Sentence if there is none. */
export function candidates({ tensors }) {
  const floats = [...tensors].filter(([, one]) => FLOATS.includes(one.dtype)).map(([name]) => name);
  const first = ['latent_tensor', 'latents'].find((name) => floats.includes(name));
  const trained = floats.filter((name) => MUSUBI.test(name) || (KOHYA.test(name) && !name.includes('flip')));
  const likely = first !== undefined ? [first] : trained.length ? trained : floats.length === 1 ? floats : [];
  const all = [...new Set([...likely, ...floats])];
  if (!all.length) throw new Sentence('latents.none', { names: [...tensors.keys()].slice(0, 8).join(', ') || '–' });
  return all;
}

/** Reads a tensor of an open file.
 *
 * Returns {dtype, shape, data, space, model, program}: space is `vae`, `pipeline`, or null if the file does not say.
 */
export async function readLatents(fileName, opened, name) {
  const { form, tensors, about } = opened;
  const stored = tensors.get(name);
  let { dtype, shape } = stored;
  let data = await stored.read();
  if (dtype === 'float64') {
    data = new Uint8Array(new Float32Array(new Float64Array(data.buffer)).buffer);
    dtype = 'float32';
  }
  const ending = name.replace(/^latents(_flipped)?/, '');
  const isKohya = form === 'npz' && KOHYA.test(name) && BESIDE.some((one) => tensors.has(one + ending));
  const found = { dtype, data, space: null, model: null, program: null };
  if (name === 'latent_tensor') {
    Object.assign(found, { space: 'vae', program: 'ComfyUI' });
    if (!tensors.has('latent_format_version_0') && dtype === 'float32') {
      found.data = new Uint8Array(new Float32Array(data.buffer).map((one) => one * Math.fround(1 / COMFY_FACTOR)).buffer);
    }
  } else if (MUSUBI.test(name)) {
    shape = [1, ...shape];
    found.program = 'musubi-tuner';
    if (String(about.architecture ?? '').startsWith('flux_kontext')) found.space = 'pipeline';
  } else if (isKohya) {
    shape = [1, ...shape];
    found.program = 'sd-scripts';
    if (/_flux\.npz$/.test(fileName)) found.space = 'pipeline';
    else if (shape[1] === 4 || /_sd3\.npz$/.test(fileName)) found.space = 'vae';
  } else {
    found.space = ['pipeline', 'vae'].includes(about.space) ? about.space : null;
    found.model = about.model ?? null;
    if (found.space) found.program = 'hybridge';
  }
  return { ...found, shape: withoutFrame(shape) };
}

/** A video of one frame counts as a picture. */
const withoutFrame = (shape) =>
  shape.length === 5 && shape[2] === 1 ? [shape[0], shape[1], shape[3], shape[4]] : shape;
