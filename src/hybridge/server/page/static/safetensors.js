// Files of safetensors: eight bytes with the length of a JSON header, the header, the tensors.

import { Sentence } from './work.js';

const DTYPES = { F64: 'float64', F32: 'float32', F16: 'float16', BF16: 'bfloat16', U8: 'uint8', I64: 'int64', I32: 'int32', BOOL: 'bool' };
const NAMES = Object.fromEntries(Object.entries(DTYPES).map(([short, long]) => [long, short]));

/** Most bytes of a header; ComfyUI writes its whole workflow there. */
const MOST_HEADER = 16 * 2 ** 20;

/** Returns the tensors of a file, by name, as {dtype, shape, data}, and its metadata. */
export function readSafetensors(buffer) {
  const view = new DataView(buffer);
  const length = buffer.byteLength >= 8 ? Number(view.getBigUint64(0, true)) : 0;
  if (length < 2 || length > Math.min(MOST_HEADER, buffer.byteLength - 8)) throw new Sentence('latents.damaged');
  let header;
  try {
    header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  } catch {
    throw new Sentence('latents.damaged');
  }
  const { __metadata__: about = {}, ...entries } = header;
  const tensors = new Map();
  for (const [name, { dtype, shape, data_offsets: [begin, end] = [0, -1] }] of Object.entries(entries)) {
    if (!(begin >= 0 && begin <= end && 8 + length + end <= buffer.byteLength)) throw new Sentence('latents.damaged');
    tensors.set(name, { dtype: DTYPES[dtype] ?? dtype, shape, data: new Uint8Array(buffer, 8 + length + begin, end - begin) });
  }
  return { tensors, about };
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
