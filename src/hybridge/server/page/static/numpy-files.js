// NumPy's files: .npy, one array, and .npz, a ZIP archive of them.  Pickled arrays are refused.

import { Sentence } from './work.js';

const DTYPES = { '>f8': 'float64', '>f4': 'float32', '>f2': 'float16', '<f8': 'float64', '<f4': 'float32', '<f2': 'float16', '|u1': 'uint8' };

/** Most bytes of one array; an archive may declare any size. */
const MOST_BYTES = 2 ** 30;

/** Bytes that hold the header of an array, with some of its numbers. */
const HEAD_BYTES = 2 ** 16;

/** Returns the only array of a .npy file, under the name `''`; throws Sentence. */
export async function readNpy(file) {
  return { form: 'npy', tensors: new Map([['', await described(file, file.size, async () => file)]]), about: {} };
}

/** Returns the arrays of a .npz file by name; throws Sentence. */
export async function readNpz(file) {
  const tensors = new Map();
  for (const { name, begin, packed, size, method } of await members(file)) {
    if (!name.endsWith('.npy')) continue;
    if (size > MOST_BYTES || ![0, 8].includes(method)) throw new Sentence('latents.damaged');
    const data = file.slice(begin, begin + packed);
    const unpack = async (wanted) =>
      method === 0 ? data.slice(0, wanted) : first(data.stream().pipeThrough(new DecompressionStream('deflate-raw')), wanted);
    const whole = async () => {
      const blob = await unpack(size + 1);
      if (blob.size !== size) throw new Sentence('latents.damaged');
      return blob;
    };
    tensors.set(name.slice(0, -4), await described(await unpack(HEAD_BYTES), size, whole));
  }
  return { form: 'npz', tensors, about: {} };
}

/** Reads the header of an array.
 *
 * @param blob its beginning, @param size of the whole file of the array, @param whole returns that
 */
async function described(blob, size, whole) {
  const start = new Uint8Array(await blob.slice(0, 12).arrayBuffer());
  if (start.length < 12 || String.fromCharCode(...start.slice(1, 6)) !== 'NUMPY') throw new Sentence('latents.damaged');
  const view = new DataView(start.buffer);
  const [from, length] = start[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = await blob.slice(from, from + Math.min(length, HEAD_BYTES)).text();
  const descr = header.match(/'descr': '([^']+)'/)?.[1];
  const shape = (header.match(/'shape': \(([^)]*)\)/)?.[1] ?? '').split(',').filter((one) => one.trim()).map(Number);
  const nbytes = shape.reduce((product, one) => product * one, Number(descr?.slice(2)));
  if (descr in DTYPES && size !== from + length + nbytes) throw new Sentence('latents.damaged');
  const read = async () => {
    const data = new Uint8Array(await (await whole()).slice(from + length).arrayBuffer());
    const item = Number(descr[2]);
    if (descr.startsWith('>')) for (let at = 0; at < data.length; at += item) data.subarray(at, at + item).reverse();
    return header.includes("'fortran_order': True") ? inRows(data, shape, item) : data;
  };
  return { dtype: DTYPES[descr] ?? descr ?? 'unknown', shape, nbytes, read };
}

/** Turns an array whose first axis runs fastest into one whose last axis does. */
function inRows(data, shape, size) {
  const turned = new Uint8Array(data.length);
  const steps = shape.map((_, axis) => shape.slice(0, axis).reduce((product, one) => product * one, size));
  const place = shape.map(() => 0);
  for (let to = 0; to < data.length; to += size) {
    const from = place.reduce((sum, one, axis) => sum + one * steps[axis], 0);
    turned.set(data.subarray(from, from + size), to);
    for (let axis = shape.length - 1; axis >= 0 && (place[axis] += 1) === shape[axis]; axis -= 1) place[axis] = 0;
  }
  return turned;
}

/** Lists the members of a ZIP archive from its directory, which is at the end. */
async function members(file) {
  const tailAt = Math.max(0, file.size - 65557);
  const tail = new DataView(await file.slice(tailAt).arrayBuffer());
  let end = tail.byteLength - 22;
  while (end >= 0 && tail.getUint32(end, true) !== 0x06054b50) end -= 1;
  if (end < 0) throw new Sentence('latents.damaged');
  const count = tail.getUint16(end + 10, true);
  const at = tail.getUint32(end + 16, true);
  const directory = new DataView(await file.slice(at, at + tail.getUint32(end + 12, true)).arrayBuffer());
  const found = [];
  try {
    for (let index = 0, here = 0; index < count; index += 1) {
      if (directory.getUint32(here, true) !== 0x02014b50) throw new RangeError();
      const [nameLength, extra, comment] = [28, 30, 32].map((one) => directory.getUint16(here + one, true));
      const name = new TextDecoder().decode(new Uint8Array(directory.buffer, here + 46, nameLength));
      const isEncrypted = directory.getUint16(here + 8, true) & 1;
      const local = directory.getUint32(here + 42, true);
      const head = new DataView(await file.slice(local, local + 30).arrayBuffer());
      found.push({
        name,
        begin: local + 30 + head.getUint16(26, true) + head.getUint16(28, true),
        packed: directory.getUint32(here + 20, true),
        size: directory.getUint32(here + 24, true),
        method: isEncrypted ? -1 : directory.getUint16(here + 10, true),
      });
      here += 46 + nameLength + extra + comment;
    }
  } catch {
    throw new Sentence('latents.damaged'); // RangeError: something lies outside of the file
  }
  return found;
}

/** Returns the first bytes of a stream, and no more than are wanted. */
async function first(stream, wanted) {
  const parts = [];
  const reader = stream.getReader();
  try {
    for (let count = 0; count < wanted; count += parts.at(-1).length) {
      const { value, done } = await reader.read();
      if (done) break;
      parts.push(value.subarray(0, wanted - count));
    }
  } catch {
    throw new Sentence('latents.damaged');
  } finally {
    reader.cancel().catch(() => {});
  }
  return new Blob(parts);
}
