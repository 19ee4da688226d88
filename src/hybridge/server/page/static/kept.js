// What a tab keeps until it closes.  Browsers that forbid storage throw at each use of it; then it lasts for the page.

const inPage = new Map();

/** Returns what is kept under a name, or null. */
export function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return inPage.get(name) ?? null;
  }
}

/** Keeps a text under a name, or nothing for null. */
export function keep(name, value) {
  try {
    if (value === null) sessionStorage.removeItem(name);
    else sessionStorage.setItem(name, value);
  } catch {
    inPage.set(name, value);
  }
}
