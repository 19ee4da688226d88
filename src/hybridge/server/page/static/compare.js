// Two pictures, one over the other: a slider that uncovers the second, or where they differ.

import { make, word } from './dom.js';
import { drawDifference } from './picture.js';

let count = 0;

/** Returns an element that compares two canvases of one size. */
export function comparison(before, after) {
  const name = `view-${(count += 1)}`;
  const slider = make('input', { type: 'range', min: 0, max: 100, value: 50, 'data-label': 'compare.share' });
  const difference = make('canvas', { class: 'difference', role: 'img', 'data-label': 'compare.difference-alt' });
  const factor = make('select', {}, ...[1, 4, 8, 16].map((one) => make('option', { value: one }, `×${one}`)));
  factor.value = 8;
  const stage = make(
    'div',
    { class: 'stage' },
    described(before, 'before', 'compare.before-alt'),
    described(after, 'after', 'compare.after-alt'),
    difference,
    make('div', { class: 'edge' }),
    slider,
  );
  stage.style.aspectRatio = `${before.width} / ${before.height}`;
  stage.style.setProperty('--ratio', before.width / before.height);
  const choose = (view) =>
    make(
      'label',
      {},
      make('input', { type: 'radio', name, value: view, checked: view === 'slider' }),
      word(`compare.${view}`),
    );
  const element = make(
    'div',
    { class: 'comparison', 'data-view': 'slider' },
    stage,
    make('p', { class: 'captions' }, word('compare.before'), word('compare.after')),
    make(
      'div',
      { class: 'row' },
      make('fieldset', { class: 'choice', 'data-label': 'compare' }, choose('slider'), choose('difference')),
      make('label', { class: 'factor' }, word('compare.factor'), ' ', factor),
    ),
  );
  slider.addEventListener('input', () => stage.style.setProperty('--edge', `${slider.value}%`));
  const redraw = () => drawDifference(difference, before, after, Number(factor.value));
  factor.addEventListener('change', redraw);
  element.addEventListener('change', (event) => {
    if (event.target.name !== name) return;
    element.dataset.view = event.target.value;
    if (event.target.value === 'difference') redraw();
  });
  return element;
}

function described(canvas, role, label) {
  canvas.className = role;
  canvas.setAttribute('role', 'img');
  canvas.dataset.label = label;
  return canvas;
}
