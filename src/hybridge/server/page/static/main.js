// Starts the page: the language, the sections, the key, and where files go.

import { Refusal, key } from './api.js';
import { complain, find, make, word } from './dom.js';
import { takeFiles } from './drop.js';
import { beginToSpeak, say } from './i18n.js';
import { beginKeys } from './keys.js';
import { beginLatents } from './latents.js';
import { beginModels } from './models.js';
import { beginPhoto } from './photo.js';
import { beginPrompt } from './prompt.js';
import { ask, onServer } from './server.js';
import { beginTheme } from './theme.js';

beginTheme();
beginToSpeak();
beginModels();
const takers = { photo: beginPhoto(take), latents: beginLatents(take) };
beginPrompt();
beginKeys();
takeFiles(take);
onServer(showNavigation);
onServer(showStanding);
beginKeyForm();
ask();

/** Gives a file to the section that it is for; `asked` is the one that it was dropped on. */
function take(file, asked = 'photo') {
  const isLatents = /\.(safetensors|latent|npz|npy|pt|ckpt)$/i.test(file.name);
  const wanted = isLatents ? 'latents' : file.type.startsWith('image/') ? 'photo' : asked;
  const chosen = [wanted, 'photo', 'latents'].find((one) => one in takers && !find(`#${one}`).hidden);
  if (!chosen) return;
  takers[chosen](file);
  find(`#${chosen}`).scrollIntoView({ block: 'nearest' });
}

function showStanding({ error, isKnown, models, load }) {
  document.body.classList.remove('starting');
  const standing = find('#standing');
  const wantsKey = error instanceof Refusal && error.status === 401;
  standing.className = `standing ${wantsKey ? 'locked' : error ? 'bad' : 'good'}`;
  if (wantsKey) say(standing, 'standing.locked');
  else if (error instanceof Refusal) say(standing, 'standing.refused', { said: error.message });
  else if (error) say(standing, 'standing.away');
  else if (isKnown) say(standing, load.running ? 'standing.busy' : 'standing.ready', { count: models.length });
  const form = find('#key-form');
  if (wantsKey && form.hidden) {
    form.hidden = false;
    if (key.get()) complain(find('.failure', form), 'key.wrong');
  }
  if (isKnown && !wantsKey) form.hidden = true;
  if (wantsKey) for (const section of document.querySelectorAll('main > section')) section.hidden = true;
}

/** Links to the sections that this server has something for. */
function showNavigation() {
  const sections = [...document.querySelectorAll('main > section')].filter((one) => !one.hidden);
  const navigation = find('nav');
  const wanted = sections.map((one) => one.id).join();
  if (navigation.dataset.shown === wanted) return;
  navigation.dataset.shown = wanted;
  navigation.hidden = sections.length < 2;
  navigation.replaceChildren(...sections.map((one) => make('a', { href: `#${one.id}` }, word(`nav.${one.id}`))));
}

function beginKeyForm() {
  const form = find('#key-form');
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    key.set(find('#key').value.trim());
    find('#key').value = '';
    form.hidden = true;
    ask();
  });
}
