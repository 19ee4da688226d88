// Dark or light: as the system has it, until a button says otherwise for this tab.

import { keep, kept } from './kept.js';

const KEPT = 'hybridge-theme';

function show(theme) {
  const root = document.documentElement;
  if (theme) root.dataset.theme = theme;
  else delete root.dataset.theme;
  const isDark = theme ? theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
  for (const one of document.querySelectorAll('[data-theme-choice]')) {
    one.ariaPressed = String(one.dataset.themeChoice === (isDark ? 'dark' : 'light'));
  }
}

export function beginTheme() {
  for (const one of document.querySelectorAll('[data-theme-choice]')) {
    one.addEventListener('click', () => {
      keep(KEPT, one.dataset.themeChoice);
      show(kept(KEPT));
    });
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => show(kept(KEPT)));
  show(kept(KEPT));
}
