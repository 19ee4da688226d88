// What is known about a result: a list of names and values, and what the server said besides.

import { make, word } from './dom.js';
import { seconds } from './units.js';

/** Returns a list; each row is [entry of the texts, value, entry of a note]; a value may be a function. */
export function facts(rows) {
  const list = make('dl', { class: 'about' });
  for (const [key, value, note] of rows) {
    const shown = typeof value === 'function' ? word('said', { said: value }, 'dd') : make('dd', {}, value);
    const more = note ? [word(note, {}, 'dd', { class: 'note' })] : [];
    list.append(make('div', {}, word(key, {}, 'dt'), shown, ...more));
  }
  return list;
}

/** Returns the row with the time of answers on the server. */
export function timeRow(key, ...answers) {
  const times = answers.map((answer) => seconds(timeOf(answer)));
  return [key, times.join(' + '), 'time-note'];
}

/** Returns the warnings of an answer as elements. */
export function warnings(answer) {
  const said = answer.headers.get('hybridge-warning');
  return said ? [word('warning', { said }, 'p', { class: 'warning' })] : [];
}

/** Seconds that the device and the files of an answer took, by its server-timing. */
function timeOf(answer) {
  const stages = [...(answer.headers.get('server-timing') ?? '').matchAll(/(\w+);dur=([\d.]+)/g)];
  const busy = stages.filter(([, name]) => ['read', 'device', 'encode'].includes(name));
  return busy.reduce((sum, [, , milliseconds]) => sum + Number(milliseconds) / 1000, 0);
}
