// The first section: the models with their states and the reasons for them, the queue, the memory.

import { empty, find, make, word } from './dom.js';
import { onLanguage } from './i18n.js';
import { onServer, server } from './server.js';
import { bytes, seconds } from './units.js';

/** Shows and updates the section. */
export function beginModels() {
  onServer(show);
  onLanguage(() => server.isKnown && show());
}

function show() {
  find('#models').hidden = !server.isKnown;
  showNumbers();
  const list = find('#model-list');
  // Rebuilt only where something changed, so that an open reason stays open and nothing is read out again.
  const wanted = JSON.stringify(server.models.map(entry));
  if (list.dataset.shown !== wanted) {
    list.dataset.shown = wanted;
    const open = new Set([...list.querySelectorAll('details[open]')].map((one) => one.closest('li').dataset.model));
    list.replaceChildren(...server.models.map((model) => row(model, open.has(model.name))));
  }
}

const entry = ({ name, state, failure, weights_bytes, text }) => [name, state, failure, weights_bytes, text?.state];

function showNumbers() {
  const { waiting, waitingS, running, weights, memory, resident } = server.load;
  const queue = word('numbers.queue', { waiting: waiting ?? '–', running: running ?? '–' }, 'dd');
  const work = waitingS > 0 ? word('numbers.work', { time: seconds(waitingS) }, 'dd') : null;
  const held = memory
    ? word('numbers.weights-of', { weights: bytes(weights), memory: bytes(memory) }, 'dd')
    : word('numbers.weights', { weights: bytes(weights ?? 0) }, 'dd');
  const share = memory ? [make('dd', {}, make('progress', { max: memory, value: weights, 'aria-hidden': 'true' }))] : [];
  const process = resident ? [word('numbers.process', { bytes: bytes(resident) }, 'dd', { class: 'note' })] : [];
  const { max_pixels: pixels, max_body_bytes: body } = server.limits;
  const numbers = find('#numbers');
  empty(numbers);
  numbers.append(
    make('div', {}, word('numbers.queue-title', {}, 'dt'), queue, ...(work ? [work] : [])),
    make('div', {}, word('numbers.memory-title', {}, 'dt'), held, ...share, ...process),
  );
  if (pixels && body) {
    const side = Math.floor(Math.sqrt(pixels));
    numbers.append(
      make(
        'div',
        {},
        word('numbers.limits-title', {}, 'dt'),
        word('numbers.limits', { side: `${side}×${side}` }, 'dd'),
        word('numbers.limits-body', { bytes: bytes(body) }, 'dd', { class: 'note' }),
      ),
    );
  }
}

function row(model, isOpen) {
  const tasks = make('p', { class: 'tasks' }, ...model.tasks.map((task) => word(`task.${task}`)));
  const parts = [['', model], ...(model.text && model.latent_channels ? [['text', model.text]] : [])];
  return make(
    'li',
    { 'data-model': model.name },
    make(
      'div',
      { class: 'what' },
      make('h3', {}, model.title),
      make('p', { class: 'note' }, make('code', {}, model.name), ` · ${model.class}`),
    ),
    tasks,
    make('div', { class: 'states' }, ...parts.map(([part, about]) => stateOf(part, about, isOpen))),
  );
}

function stateOf(part, about, isOpen) {
  const state = about.failure && about.state === 'cold' ? 'failed' : about.state;
  const size = about.weights_bytes ? ` · ${bytes(about.weights_bytes)}` : '';
  const label = part ? [word(`part.${part}`)] : [];
  const line = make('p', { class: `state ${state}` }, ...label, word(`state.${state}`), size);
  const where = [about.dtype, about.device].filter(Boolean).join(' · ');
  const why = [about.device_reason, about.dtype_reason].filter(Boolean).join('; ');
  const reasons = [make('p', { lang: 'en' }, why)];
  if (about.failure) reasons.push(make('p', { class: 'failure', lang: 'en' }, about.failure));
  const details = make('details', { open: isOpen || Boolean(about.failure) }, make('summary', {}, where || '–'), ...reasons);
  return make('div', {}, line, details);
}
