// The two languages.  Whatever is said through say() is said again when the language changes.

import { keep, kept } from './kept.js';
import en from './texts/en.js';
import zh from './texts/zh.js';

const TEXTS = { en, zh };
const TAGS = { en: 'en', zh: 'zh-Hans' };
const KEPT = 'hybridge-language';

const values = new WeakMap();
const hearers = new Set();
const spoken = (navigator.languages ?? []).map((one) => one.toLowerCase().split('-')[0]);
let language = kept(KEPT) ?? spoken.find((one) => one in TEXTS) ?? 'en';

/** Returns an entry of the texts in the language of the moment; {name} stands for a value. */
export function text(key, given = {}) {
  const found = TEXTS[language][key] ?? TEXTS.en[key] ?? key;
  return found.replace(/\{(\w+)\}/g, (_, name) => {
    const value = given[name] ?? '';
    return typeof value === 'function' ? value() : String(value);
  });
}

/** Whether there is such an entry. */
export const known = (key) => key in TEXTS.en;

/** Lets an element say an entry; a value that is a function is asked again in the other language. */
export function say(element, key, given = {}) {
  element.dataset.text = key;
  values.set(element, given);
  const wanted = text(key, given);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Calls a function whenever the language has changed. */
export const onLanguage = (hear) => hearers.add(hear);

/** Says everything below an element in the language of the moment. */
export function translate(root = document) {
  for (const element of root.querySelectorAll('[data-text]')) say(element, element.dataset.text, values.get(element));
  for (const element of root.querySelectorAll('[data-label]')) element.ariaLabel = text(element.dataset.label);
  for (const element of root.querySelectorAll('[data-placeholder]')) {
    element.placeholder = text(element.dataset.placeholder);
  }
}

/** Changes the language of the page. */
function speak(chosen) {
  language = chosen in TEXTS ? chosen : 'en';
  document.documentElement.lang = TAGS[language];
  document.title = `hybridge · ${location.host}`;
  for (const one of document.querySelectorAll('[data-language]')) {
    one.ariaPressed = String(one.dataset.language === language);
  }
  translate();
  for (const hear of hearers) hear();
}

/** Begins in the browser's language, and lets the buttons change it. */
export function beginToSpeak() {
  for (const one of document.querySelectorAll('[data-language]')) {
    one.addEventListener('click', () => {
      keep(KEPT, one.dataset.language);
      speak(one.dataset.language);
    });
  }
  speak(language);
}
