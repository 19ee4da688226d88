// What the server says about itself, asked again every few seconds while somebody looks.

import { Refusal, call, get } from './api.js';

const PAUSE_S = 4;
const BUSY_PAUSE_S = 1.5;

/** The latest answer: `models`, `limits`, `load`; `error` is why there is none. */
export const server = { models: [], limits: {}, load: {}, error: null, isKnown: false };

const hearers = new Set();
let timer = 0;
let asking = null;

/** Calls a function after every answer, and at once if there is one. */
export function onServer(hear) {
  hearers.add(hear);
  if (server.isKnown) hear(server);
}

/** Returns the models that have all of these tasks. */
export const modelsFor = (...tasks) => server.models.filter((model) => tasks.every((one) => model.tasks.includes(one)));

/** Returns the model of a name. */
export const modelOf = (name) => server.models.find((model) => model.name === name);

/** Asks now; what runs already is waited for. */
export function ask() {
  clearTimeout(timer);
  asking ??= once().finally(() => {
    asking = null;
    const isBusy = server.load.running > 0 || server.models.some((model) => model.state === 'loading');
    if (!document.hidden) timer = setTimeout(ask, 1000 * (isBusy ? BUSY_PAUSE_S : PAUSE_S));
  });
  return asking;
}

async function once() {
  try {
    const [{ models, limits }, numbers] = await Promise.all([get('v1/models'), gauges()]);
    for (const model of models) model.title ||= model.name;
    Object.assign(server, { models, limits: limits ?? {}, load: numbers, error: null, isKnown: true });
  } catch (error) {
    server.error = error;
    if (error instanceof Refusal && error.status === 401) Object.assign(server, { models: [], load: {}, isKnown: false });
  }
  for (const hear of hearers) hear(server);
}

/** Returns the gauges that this page shows, from Prometheus' text; what is not there is null. */
async function gauges() {
  const exposition = await call('metrics').then(
    (answer) => answer.text(),
    (error) => (error instanceof Refusal && error.status === 404 ? '' : Promise.reject(error)),
  );
  const gauge = (name) => {
    const found = exposition.match(new RegExp(`^${name} (\\S+)$`, 'm'));
    return found ? Number(found[1]) : null;
  };
  return {
    waiting: gauge('hybridge_queue_depth'),
    waitingS: gauge('hybridge_queue_cost'),
    running: gauge('hybridge_running_jobs'),
    weights: gauge('hybridge_weights_bytes'),
    memory: gauge('hybridge_memory_bytes'),
    resident: gauge('process_resident_memory_bytes'),
  };
}

document.addEventListener('visibilitychange', () => !document.hidden && ask());
