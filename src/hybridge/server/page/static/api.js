// Requests to this server.  All addresses are relative to the page, so that a proxy may serve it below any path.

import { keep, kept } from './kept.js';

const KEPT = 'hybridge-key';

const hearers = new Set();

/** An answer other than 2xx; `code` and `message` are the server's. */
export class Refusal extends Error {
  constructor(status, document) {
    super(document.error ?? `status ${status}`);
    this.status = status;
    this.code = document.code ?? '';
  }
}

/** No answer: the server is down, or the network is. */
export class Unreachable extends Error {}

/** The key of this tab; it goes into the Authorization header and nowhere else. */
export const key = {
  get: () => kept(KEPT),
  set: (value) => change(value),
  forget: () => change(null),
  onChange: (hear) => hearers.add(hear),
};

function change(value) {
  for (const hear of hearers) hear(); // while the old key is still there
  keep(KEPT, value);
}

/** Takes a key out of the page's own address, as `?key=KEY` or `/k/KEY/`: there a history would keep it. */
function withoutKey() {
  const query = new URLSearchParams(location.search);
  const [, before, inPath] = location.pathname.match(/^(.*\/)k\/([^/]+)\/$/) ?? [];
  const found = query.get('key') ?? (inPath && decodeURIComponent(inPath));
  if (found) {
    key.set(found);
    history.replaceState(null, '', (before ?? location.pathname) + location.hash);
  }
  return location.origin + location.pathname.replace(/[^/]*$/, '');
}

/** Where the API is: the page's own folder. */
export const base = withoutKey();

/** Returns the address of a path and a query; lists are written as one parameter each. */
export function address(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value]).map((one) => [name, String(one)]),
  );
  const search = new URLSearchParams(pairs).toString();
  return base + path + (search ? `?${search}` : '');
}

/** Sends a request and returns the answer if it is 2xx; throws Refusal or Unreachable. */
export async function call(path, { query = {}, headers = {}, ...options } = {}) {
  const sent = new Headers(headers);
  if (key.get()) sent.set('authorization', `Bearer ${key.get()}`);
  let answer;
  try {
    answer = await fetch(address(path, query), { cache: 'no-store', ...options, headers: sent });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Unreachable(error.message);
  }
  if (answer.ok) return answer;
  throw new Refusal(answer.status, await answer.json().catch(() => ({})));
}

/** Returns the JSON of a GET. */
export const get = async (path, options) => (await call(path, options)).json();
