// Pictures on canvases: read, fitted into the server's limits, compared.

import { make } from './dom.js';
import { Sentence, checkThere } from './work.js';

/** Returns the picture of a file, turned as its EXIF says. */
export async function readPicture(file) {
  if (file.type.startsWith('video/')) throw new Sentence('photo.video', { name: file.name });
  try {
    return await createImageBitmap(file);
  } catch {
    await checkThere(file);
    throw new Sentence('photo.unreadable', { name: file.name });
  }
}

/** Draws a picture onto a canvas that the server takes.
 *
 * @param longest the longest side, @param most the most pixels, @param multiple what both sides are multiples of;
 * what is left over is cut off at the edges, equally
 */
export function fitted(picture, { longest, most, multiple }) {
  const { width, height } = picture;
  const scale = Math.min(1, longest / Math.max(width, height), Math.sqrt(most / (width * height)));
  // Of a very long picture the shorter side is not scaled below what the server takes.
  const side = (length) => Math.floor(Math.max(length * scale, Math.min(length, multiple)) / multiple) * multiple;
  const canvas = make('canvas', { width: side(width), height: side(height) });
  if (!canvas.width || !canvas.height) throw new Sentence('photo.small', { size: `${width}×${height}`, least: multiple });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  // What is transparent becomes white; the server would drop alpha, and show what lies under it.
  context.fillStyle = '#fff';
  context.fillRect(0, 0, canvas.width, canvas.height);
  const shown = Math.max(canvas.width / width, canvas.height / height);
  const [drawnWidth, drawnHeight] = [width * shown, height * shown];
  context.drawImage(
    picture,
    (canvas.width - drawnWidth) / 2,
    (canvas.height - drawnHeight) / 2,
    drawnWidth,
    drawnHeight,
  );
  return canvas;
}

/** Returns a canvas of a picture as it is, or of another size. */
export function drawn(picture, { width, height } = picture) {
  const canvas = make('canvas', { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingQuality = 'high';
  context.drawImage(picture, 0, 0, width, height);
  return canvas;
}

/** Returns the canvas as a PNG. */
export const png = (canvas) => new Promise((done) => canvas.toBlob(done, 'image/png'));

const pixels = (canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);

/** Returns the peak signal-to-noise ratio of two canvases of one size in dB, over the three colours. */
export function psnr(one, other) {
  const [a, b] = [pixels(one).data, pixels(other).data];
  let sum = 0;
  for (let index = 0; index < a.length; index += 4) {
    for (let colour = index; colour < index + 3; colour += 1) sum += (a[colour] - b[colour]) ** 2;
  }
  return 10 * Math.log10(255 ** 2 / (sum / (0.75 * a.length)));
}

/** Draws how far two canvases of one size differ onto a third: black is equal, each colour is enlarged. */
export function drawDifference(canvas, one, other, factor) {
  const [a, b] = [pixels(one), pixels(other)];
  for (let index = 0; index < a.data.length; index += 1) {
    a.data[index] = index % 4 === 3 ? 255 : factor * Math.abs(a.data[index] - b.data[index]);
  }
  canvas.width = one.width;
  canvas.height = one.height;
  canvas.getContext('2d').putImageData(a, 0, 0);
}
