// The same request for a terminal, for Python, and for diffusers' own functions.  None of them holds a key.

import { base, key } from './api.js';
import { button, make, word } from './dom.js';
import { say, translate } from './i18n.js';

const FORMS = { curl: 'curl', python: 'Python', diffusers: 'diffusers' };
let count = 0;

/** Returns an element with the code of a request, in three forms.
 *
 * @param kind a key of WRITTEN
 * @param about what the request was about
 */
export function snippets(kind, about) {
  const name = `form-${(count += 1)}`;
  const code = make('code', {});
  const copied = make('span', { role: 'status', class: 'note' });
  const show = (form) => {
    code.textContent = WRITTEN[kind](about)[form];
    copied.textContent = '';
  };
  const choice = Object.entries(FORMS).map(([form, title], index) =>
    make('label', {}, make('input', { type: 'radio', name, value: form, checked: !index }), make('span', {}, title)),
  );
  const copy = async () => say(copied, (await copyText(code)) ? 'copy.done' : 'copy.by-hand');
  const element = make(
    'details',
    { class: 'snippets' },
    word('copy', {}, 'summary'),
    make('div', { class: 'row' }, make('fieldset', { class: 'choice', 'data-label': 'copy' }, ...choice), button('copy.copy', copy), copied),
    make('pre', { tabindex: 0 }, code),
  );
  element.addEventListener('change', (event) => show(event.target.value));
  show('curl');
  translate(element);
  return element;
}

/** Copies the text of an element and returns whether that worked; where a page without TLS may not, it selects it and tries the old way. */
export async function copyText(element) {
  try {
    await navigator.clipboard.writeText(element.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(element);
    return document.execCommand('copy');
  }
}

const shell = (value) => `'${value.replaceAll("'", "'\\''")}'`;
const quoted = JSON.stringify; // also a string of Python
const server = base.replace(/\/$/, '');
const header = () => (key.get() ? ' -H "Authorization: Bearer $HYBRIDGE_KEY"' : '');
const importing = () => (key.get() ? 'import os\n\nfrom hybridge import Client\n' : 'from hybridge import Client\n');
const client = () => `Client(${quoted(server)}${key.get() ? ', api_key=os.environ["HYBRIDGE_KEY"]' : ''})`;
const endpoint = (path) => {
  if (!key.get()) return quoted(`${server}/${path}`);
  const [scheme, rest] = server.split('://');
  return `f"${scheme}://user:{os.environ['HYBRIDGE_KEY']}@${rest}/${path}"`;
};
const withOs = (lines) => (key.get() ? `import os\n\n${lines}` : lines);

/** What each kind of request looks like: {curl, python, diffusers}. */
const WRITTEN = {
  photo: ({ model, name, type, latents: { shape, dtype } }) => ({
    curl: [
      `curl -sS --data-binary @${shell(name)} -H 'Content-Type: ${type || 'image/png'}'${header()} \\`,
      `  -o latents.bin ${shell(`${server}/v1/${model}/encode`)}`,
      `curl -sS --data-binary @latents.bin -H 'Content-Type: tensor/binary' -H 'Accept: image/png'${header()} \\`,
      `  -o picture.png ${shell(`${server}/v1/${model}/decode?shape=${shape}&dtype=${dtype}`)}`,
    ].join('\n'),
    python: [
      importing(),
      `with ${client()} as client:`,
      `    latents = client.encode(${quoted(name)}, model=${quoted(model)})`,
      `    client.decode(latents, model=${quoted(model)}, image_format="png").save("picture.png")`,
    ].join('\n'),
    diffusers: withOs(
      [
        'from diffusers.utils import load_image',
        'from diffusers.utils.remote_utils import remote_decode, remote_encode\n',
        `latents = remote_encode(${endpoint(`v1/${model}/encode`)}, load_image(${quoted(name)}))`,
        `picture = remote_decode(${endpoint(`v1/${model}/decode`)}, latents, do_scaling=False)`,
        'picture.save("picture.png")',
      ].join('\n'),
    ),
  }),
  latents: ({ model, file, name, shape, dtype, space, film }) => {
    const isScaled = space === 'pipeline' ? 'True' : 'False';
    const made = film ? 'film.mp4' : 'picture.png';
    const tensor = name ? `[${quoted(name)}]` : '';
    const loading = /\.np[yz]$/.test(file)
      ? ['import numpy', 'import torch', `latents = torch.from_numpy(numpy.load(${quoted(file)})${tensor}).reshape(${shape})`]
      : ['from safetensors.torch import load_file', '', `latents = load_file(${quoted(file)})${tensor}.reshape(${shape})`];
    const output = film ? ', output_type="mp4", return_type="mp4"' : '';
    const query = `shape=${shape}&dtype=${dtype}&do_scaling=${isScaled}${film ? '&output_type=mp4' : ''}`;
    return {
      curl: [
        `# latents.bin: the numbers alone, ${dtype} ${shape.join('×')}`,
        `curl -sS --data-binary @latents.bin -H 'Content-Type: tensor/binary'${film ? '' : " -H 'Accept: image/png'"}${header()} \\`,
        `  -o ${made} ${shell(`${server}/v1/${model}/decode?${query}`)}`,
      ].join('\n'),
      python: [
        importing(),
        `with ${client()} as client:`,
        film
          ? `    client.decode_video(${quoted(file)}, "film.mp4", model=${quoted(model)}, do_scaling=${isScaled})`
          : `    client.decode(${quoted(file)}, model=${quoted(model)}, do_scaling=${isScaled}, image_format="png").save("picture.png")`,
      ].join('\n'),
      diffusers: withOs(
        [
          'from diffusers.utils.remote_utils import remote_decode',
          ...loading,
          `made = remote_decode(${endpoint(`v1/${model}/decode`)}, latents, do_scaling=${isScaled}${output})`,
          film ? 'open("film.mp4", "wb").write(made)' : 'made.save("picture.png")',
        ].join('\n'),
      ),
    };
  },
  prompt: ({ model, asked, picture }) => {
    const content = JSON.stringify(asked);
    const body = picture
      ? `-F ${shell(`request=${content};type=application/json`)} -F image=@${shell(picture)}`
      : `-H 'Content-Type: application/json' -d ${shell(content)}`;
    const negative = 'negative_prompt' in asked ? `, negative_prompt=${quoted(asked.negative_prompt)}` : '';
    const image = picture ? `, images=${quoted(picture)}` : '';
    return {
      curl: [
        `curl -sS ${body}${header()} \\`,
        `  -o embeddings.safetensors ${shell(`${server}/v1/${model}/prompt`)}`,
      ].join('\n'),
      python: [
        importing(),
        `with ${client()} as client:`,
        `    embeddings = client.encode_prompt(${quoted(asked.prompt)}${negative}${image}, model=${quoted(model)})`,
        '# pipe(**embeddings)',
      ].join('\n'),
      diffusers: withOs(
        [
          'import hybridge',
          '',
          '# pipe: a pipeline that was loaded without its text encoders',
          `hybridge.connect(pipe, ${quoted(server)}${key.get() ? ', api_key=os.environ["HYBRIDGE_KEY"]' : ''})`,
          `picture = pipe(${quoted(asked.prompt)}${negative}).images[0]`,
        ].join('\n'),
      ),
    };
  },
};
