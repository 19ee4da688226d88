// A place for a file: a real file input, so that it works by keyboard; dropping is an extra.

import { make, word } from './dom.js';

/** Makes an element the place for a file.
 *
 * @param accept types and endings that the file dialog offers
 * @param text entry of the texts
 * @param take called with the file
 * Returns the element for the name of the file that is shown.
 */
export function dropZone(element, { accept, text, take }) {
  const input = make('input', { type: 'file', accept, class: 'hidden' });
  const name = make('span', { class: 'file' });
  const label = make('label', {}, word(text, {}, 'strong'), word(`${text}.how`), name, input);
  element.replaceChildren(label);
  input.addEventListener('change', () => {
    if (input.files.length) take(input.files[0]);
    input.value = ''; // so that the same file can be chosen again
  });
  return name;
}

/** Takes files that are dropped anywhere or pasted, so that the browser never leaves the page for one. */
export function takeFiles(take) {
  let depth = 0;
  const over = (isOver) => document.body.classList.toggle('dragging', isOver);
  const hasFiles = (event) => event.dataTransfer?.types.includes('Files');
  addEventListener('dragenter', (event) => hasFiles(event) && over((depth += 1) > 0));
  addEventListener('dragleave', (event) => hasFiles(event) && over((depth -= 1) > 0));
  addEventListener('dragover', (event) => hasFiles(event) && event.preventDefault());
  addEventListener('drop', (event) => {
    depth = 0;
    over(false);
    if (!hasFiles(event)) return;
    event.preventDefault();
    const [file] = event.dataTransfer.files;
    if (file) take(file, event.target.closest('section')?.id);
  });
  addEventListener('paste', (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file) return;
    event.preventDefault();
    take(file, 'photo');
  });
}
