// Makes elements.  Text is set as text alone, so that nothing from a file or a server can become markup.

import { say } from './i18n.js';

/** Returns the element of a selector within another, or within the page. */
export const find = (selector, within = document) => within.querySelector(selector);

/** Returns a new element; attributes that are false or null are left out, true is an empty attribute. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children);
  return element;
}

/** Returns a new element whose text is an entry of the page's texts, in the language of the moment. */
export function word(key, values = {}, tag = 'span', attributes = {}) {
  const element = make(tag, attributes);
  say(element, key, values);
  return element;
}

/** Returns a new button that says an entry of the page's texts. */
export function button(key, onClick, attributes = {}) {
  const element = word(key, {}, 'button', { type: 'button', ...attributes });
  element.addEventListener('click', onClick);
  return element;
}

/** Returns a link that saves a blob under a name. */
export function saving(key, blob, name) {
  return word(key, {}, 'a', { href: URL.createObjectURL(blob), download: name, class: 'button' });
}

/** Empties an element, and gives back the memory of what its links and pictures showed. */
export function empty(element) {
  for (const shown of element.querySelectorAll('[href^="blob:"], [src^="blob:"]')) {
    URL.revokeObjectURL(shown.href || shown.src);
  }
  element.replaceChildren();
}

/** Puts options into a select and keeps what was chosen, if it is still there. */
export function choices(select, options, chosen = select.value) {
  const same = [...select.options].map((one) => `${one.value} ${one.text}`).join('\n');
  if (same === options.map(([value, text]) => `${value} ${text}`).join('\n')) return;
  select.replaceChildren(...options.map(([value, text]) => make('option', { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** Shows what went wrong in an element that is read out, or hides it. */
export function complain(element, key, values = {}) {
  element.hidden = !key;
  // In an element of its own, so that what is appended stays when the language changes.
  element.replaceChildren(...(key ? [word(key, values)] : []));
}
