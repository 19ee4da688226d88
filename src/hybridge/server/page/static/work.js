// One piece of work of a section: its progress, its cancel button, and one sentence if it fails.

import { Refusal, Unreachable, key } from './api.js';
import { button, complain, make } from './dom.js';
import { known, say, text, translate } from './i18n.js';
import { Lost } from './jobs.js';
import { ask } from './server.js';
import { seconds } from './units.js';

/** What this page itself finds wrong: an entry of the texts, and its values. */
export class Sentence extends Error {
  constructor(key, values = {}) {
    super(key);
    this.key = key;
    this.values = values;
  }
}

/** Throws if a file is not there any more: browsers say so, or find it empty. */
export async function checkThere(file) {
  const first = await file.slice(0, 1).arrayBuffer();
  if (!first.byteLength) throw new Sentence('error.file-gone');
}

/** Returns the entry of the texts that explains an error, and its values. */
export function explained(error) {
  if (error instanceof Sentence) return [error.key, error.values];
  if (error instanceof Lost) return ['error.lost', {}];
  if (['NotReadableError', 'NotFoundError'].includes(error.name)) return ['error.file-gone', {}];
  if (error instanceof Unreachable) return ['error.unreachable', {}];
  if (error instanceof Refusal) {
    const key = `error.${error.code}`;
    return [known(key) ? key : 'error.refused', { said: error.message }];
  }
  return ['error.page', { said: `${error.name}: ${error.message}` }];
}

/** Returns a function that does one piece of work after another in a section; a new one cancels the last.
 *
 * Each is given a signal, and `step(name)`, which returns what hears the states of a job.
 * It returns the work's result, or undefined if that failed or was cancelled; then the section says why.
 * Its `stop()` cancels what runs without a word; so does another key, because jobs belong to a key.
 */
export function workIn(section) {
  const box = section.querySelector('.work');
  const failure = section.querySelector('.failure');
  const said = make('p', { role: 'status' });
  const left = make('p', { class: 'left' });
  const bar = make('progress', { max: 1, 'data-label': 'progress' });
  let controller = null;
  box.replaceChildren(said, left, bar, button('cancel', () => controller?.abort()));
  translate(box);

  const step = (name) => {
    let began = 0;
    return (status) => {
      if (status.state === 'running') began ||= performance.now();
      show(name, status, began ? (performance.now() - began) / 1000 : 0);
    };
  };
  const show = (name, status, ranS) => {
    say(said, `step.${name}`, { state: () => stateText(status) });
    const isRunning = status.state === 'running' && status.progress > 0;
    if (isRunning) bar.value = status.progress;
    else bar.removeAttribute('value');
    left.textContent = '';
    const leftS = secondsLeft(status, ranS);
    if (leftS > 0) say(left, 'work.left', { time: seconds(leftS) });
  };

  const during = async (work) => {
    during.stop();
    const mine = new AbortController();
    controller = mine;
    complain(failure, null);
    box.hidden = false;
    ask();
    try {
      return await work({ signal: mine.signal, step });
    } catch (error) {
      if (controller !== mine) return undefined;
      if (mine.signal.aborted) complain(failure, 'work.cancelled');
      else complain(failure, ...explained(error));
      if (!(error instanceof Sentence)) failure.append(' ', button('again', () => during(work)));
      return undefined;
    } finally {
      if (controller === mine) {
        controller = null;
        box.hidden = true;
        ask();
      }
    }
  };
  during.stop = () => {
    const running = controller;
    controller = null;
    running?.abort();
    box.hidden = true;
    delete said.dataset.text;
    for (const one of [said, left]) one.textContent = '';
    bar.removeAttribute('value');
  };
  key.onChange(during.stop);
  return during;
}

/** Of a job that runs: by its own pace, because the server's estimate may be a guess until it has run such a job. */
function secondsLeft({ state, progress, eta_s: estimate }, ranS) {
  if (state !== 'running') return estimate;
  return progress > 0.02 && ranS > 0.2 ? (ranS * (1 - progress)) / progress : null;
}

function stateText({ state, position }) {
  if (state !== 'waiting') return text(`work.${state}`);
  return position > 0 ? text('work.place', { position }) : text('work.next');
}
