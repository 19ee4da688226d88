// Numbers for people.

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** Returns bytes with two or three digits, in powers of 1024. */
export function bytes(count) {
  let power = 0;
  let value = count;
  while (value >= 1000 && power < UNITS.length - 1) {
    value /= 1024;
    power += 1;
  }
  return `${power && value < 9.95 ? value.toFixed(1) : Math.round(value)} ${UNITS[power]}`;
}

/** Returns seconds as `30 ms`, `0.4 s`, `12 s`, `3 min 5 s`. */
export function seconds(value) {
  if (value < 0.0995) return `${Math.ceil(1000 * value)} ms`;
  if (value < 9.95) return `${value.toFixed(1)} s`;
  const whole = Math.round(value);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${whole % 60} s`;
}
