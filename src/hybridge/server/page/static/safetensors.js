// Files of safetensors: eight bytes with the length of a JSON header, the header, the tensors.

import { Sentence } from './work.js';

const DTYPES = {
  F64: 'float64', F32: 'float32', F16: 'float16', BF16: 'bfloat16', I64: 'int64', I32: 'int32', U8: 'uint8', BOOL: 'bool',
};
const ITEM_BYTES = { F64: 8, F32: 4, F16: 2, BF16: 2, I64: 8, I32: 4, U8: 1, BOOL: 1 };
const NAMES = Object.fromEntries(Object.entries(DTYPES).map(([short, long]) => [long, short]));

/** Most bytes of a header; ComfyUI writes its whole workflow there. */
const MOST_HEADER = 16 * 2 ** 20;

/** Returns the tensors of a file, by name, as {dtype, shape, read()}, and its metadata; throws Sentence. */
export async function readSafetensors(file) {
  const start = new DataView(await file.slice(0, 8).arrayBuffer());
  const length = start.byteLength === 8 ? Number(start.getBigUint64(0, true)) : 0;
  if (length < 2 || length > Math.min(MOST_HEADER, file.size - 8)) throw new Sentence('latents.damaged');
  let header;
  try {
    header = JSON.parse(await file.slice(8, 8 + length).text());
  } catch {
    throw new Sentence('latents.damaged');
  }
  if (header === null || typeof header !== 'object') throw new Sentence('latents.damaged');
  const { __metadata__: about, ...entries } = header;
  const tensors = new Map();
  for (const [name, entry] of Object.entries(entries)) {
    const { dtype, shape, data_offsets: offsets } = entry ?? {};
    const [begin, end] = [0, 1].map((index) => 8 + length + offsets?.[index]);
    const isShape = Array.isArray(shape) && shape.every((one) => Number.isSafeInteger(one) && one >= 0);
    const isRight = isShape && begin >= 8 + length && begin <= end;
    const item = ITEM_BYTES[dtype];
    const fits = isRight && (!item || shape.reduce((product, one) => product * one, item) === end - begin);
    if (!fits || end > file.size) throw new Sentence('latents.damaged');
    const read = async () => new Uint8Array(await file.slice(begin, end).arrayBuffer());
    tensors.set(name, { dtype: DTYPES[dtype] ?? dtype, shape, nbytes: end - begin, read });
  }
  return { form: 'safetensors', tensors, about: about ?? {} };
}

/** Returns latents as a file that `hybridge decode` and this page read. */
export function writeSafetensors({ dtype, shape, data }, about) {
  const entry = { dtype: NAMES[dtype], shape, data_offsets: [0, data.length] };
  let header = JSON.stringify({ __metadata__: about, latents: entry });
  header += ' '.repeat((8 - (new TextEncoder().encode(header).length % 8)) % 8); // tensors begin at multiples of 8
  const encoded = new TextEncoder().encode(header);
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(encoded.length), true);
  return new Blob([length.buffer, encoded, data], { type: 'application/octet-stream' });
}
