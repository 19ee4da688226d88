// The keys of the server, for whoever has an admin's.

import { call, get, key } from './api.js';
import { button, complain, empty, find, make, word } from './dom.js';
import { say, translate } from './i18n.js';
import { ask, onServer } from './server.js';
import { copyText } from './snippets.js';
import { explained } from './work.js';

/** Milliseconds in which a second click revokes a key. */
const SURE_MS = 5000;

/** Shows the section in a tab that has a key. */
export function beginKeys() {
  const section = find('#keys');
  const form = find('form', section);
  const list = find('.list', section);
  const failure = find('.failure', section);
  const added = find('.new', section);

  const close = () => {
    form.hidden = true;
    added.hidden = true;
    empty(list);
    empty(added);
  };
  onServer(({ isKnown }) => {
    section.hidden = !(isKnown && key.get());
    if (section.hidden) close();
  });

  /** Does something with the keys, then lists them; says why it failed. */
  const managing = async (work = async () => {}) => {
    complain(failure, null);
    try {
      await work();
      const { keys } = await get('v1/keys');
      list.replaceChildren(...keys.map(row));
      form.hidden = false;
    } catch (error) {
      complain(failure, ...explained(error));
      ask(); // the key of this tab may be revoked
    }
  };

  const row = ({ name, admin }) => {
    const revoke = button('keys.revoke', () => {
      if (revoke.classList.contains('sure')) {
        managing(() => call(`v1/keys/${encodeURIComponent(name)}`, { method: 'DELETE' }));
        return;
      }
      revoke.classList.add('sure');
      say(revoke, 'keys.really');
      setTimeout(() => {
        revoke.classList.remove('sure');
        say(revoke, 'keys.revoke');
      }, SURE_MS);
    });
    revoke.setAttribute('aria-describedby', `key-${name}`);
    const about = admin ? [word('keys.is-admin', {}, 'span', { class: 'note' })] : [];
    return make('li', {}, make('code', { id: `key-${name}` }, name), ...about, revoke);
  };

  form.addEventListener('submit', (event) => {
    event.preventDefault();
    const { name, admin } = form.elements;
    managing(async () => {
      const body = JSON.stringify({ name: name.value, admin: admin.checked });
      const made = await call('v1/keys', { method: 'POST', body, headers: { 'content-type': 'application/json' } });
      const { key: secret } = await made.json();
      const shown = make('code', {}, secret);
      const copied = make('span', { class: 'note' });
      const copy = button('copy.copy', async () => say(copied, (await copyText(shown)) ? 'copy.done' : 'copy.by-hand'));
      added.replaceChildren(word('keys.new', { name: name.value }, 'p'), make('p', {}, shown), make('p', { class: 'row' }, copy, copied));
      added.hidden = false;
      form.reset();
      translate(added);
    });
  });
  find('.show', section).addEventListener('click', () => managing());
  find('.forget', section).addEventListener('click', () => {
    key.forget();
    close();
    ask();
  });
}
