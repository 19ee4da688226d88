// Work that the server does later: its place in the queue and its progress come as events, and it can be cancelled.
// The server keeps a job's result for a while; here each is deleted once it has been fetched, or the tab closes.

import { Refusal, Unreachable, call, get, key, address } from './api.js';

/** Seconds for which a server that went away is waited for: with a spool it takes its jobs up again. */
const PATIENCE_S = 20;

/** The server went away and does not know the job any more. */
export class Lost extends Error {}

/** Jobs of this tab, each with the headers of whoever began it. */
const open = new Map();

/** Runs a request as a job and returns its answer.
 *
 * @param path, options as for call()
 * @param hear called with {state, position, progress, eta_s}; the states are the server's, and `sending` before them
 * @param signal aborts it: the job is cancelled on the server, too
 */
export async function run(path, options, hear, signal) {
  hear({ state: 'sending' });
  const headers = { ...options.headers, prefer: 'respond-async' };
  const answer = await call(path, { ...options, method: 'POST', headers, signal });
  if (answer.status !== 202) return answer;
  const { id } = await answer.json();
  open.set(id, mine());
  try {
    await follow(id, hear, signal);
    const result = await call(`v1/jobs/${id}/result`, { signal });
    // Read here, because the job is deleted as soon as this function ends.
    return new Response(await result.blob(), { headers: result.headers });
  } finally {
    drop(id);
  }
}

async function follow(id, hear, signal) {
  let lastSeen = Date.now();
  for (;;) {
    try {
      const answer = await call(`v1/jobs/${id}/events`, { signal });
      for await (const status of events(answer.body)) {
        lastSeen = Date.now();
        hear(status);
        if (['done', 'failed', 'cancelled'].includes(status.state)) return;
      }
      // The stream ended before the job did: the server is going down, or is up again.
      const status = await get(`v1/jobs/${id}`, { signal });
      if (['done', 'failed', 'cancelled'].includes(status.state)) return;
    } catch (error) {
      if (error instanceof Refusal && error.status === 404) throw new Lost();
      const isGone = error instanceof Unreachable || error instanceof TypeError;
      if (!isGone && error.code !== 'ShuttingDown') throw error;
      if (Date.now() - lastSeen > 1000 * PATIENCE_S) throw new Unreachable(error.message);
      hear({ state: 'away' });
    }
    await new Promise((done) => setTimeout(done, 700));
    signal?.throwIfAborted();
  }
}

/** Yields the data of server-sent events; EventSource could not send the key. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let read = '';
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      read += value;
      const whole = read.split('\n\n');
      read = whole.pop();
      for (const event of whole) {
        const data = event.split('\n').find((line) => line.startsWith('data: '));
        if (data) yield JSON.parse(data.slice(6));
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Deletes a job, also while the tab closes. */
function drop(id) {
  if (!open.has(id)) return;
  const headers = open.get(id);
  open.delete(id);
  fetch(address(`v1/jobs/${id}`), { method: 'DELETE', headers, keepalive: true }).catch(() => {});
}

const mine = () => (key.get() ? { authorization: `Bearer ${key.get()}` } : {});

addEventListener('pagehide', () => [...open.keys()].forEach(drop));
