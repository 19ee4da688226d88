// The operations of a small UNet, on Float32Arrays.
//
// A map is {data, channels, height, width}, channel by channel; tokens are {data, count, width}, token by token.
// Weights are {weight, bias}, each {data, shape} as diffusers' file has them, or undefined.

/** Returns the convolution of a map with a square kernel of 1 or 3 pixels; the edges are filled up with zeros. */
export function convolve(map, { weight, bias }, stride = 1) {
  const [outputs, inputs, size] = weight.shape;
  const [height, width] = [map.height / stride, map.width / stride];
  const data = new Float32Array(outputs * height * width);
  const edge = (size - 1) / 2;
  for (let output = 0; output < outputs; output += 1) {
    const to = output * height * width;
    data.fill(bias.data[output], to, to + height * width);
    for (let input = 0; input < inputs; input += 1) {
      for (let tap = 0; tap < size * size; tap += 1) {
        const factor = weight.data[(output * inputs + input) * size * size + tap];
        addShifted(data, to, map, input, factor, { down: Math.floor(tap / size) - edge, right: (tap % size) - edge, stride });
      }
    }
  }
  return { data, channels: outputs, height, width };
}

/** Adds a channel of a map, times a factor and shifted, to the channel of `data` that begins at `to`. */
function addShifted(data, to, map, channel, factor, { down, right, stride }) {
  const [height, width] = [map.height / stride, map.width / stride];
  const first = right < 0 ? 1 : 0;
  const end = (width - 1) * stride + right < map.width ? width : width - 1;
  for (let row = 0; row < height; row += 1) {
    const from = row * stride + down;
    if (from < 0 || from >= map.height) continue;
    const source = (channel * map.height + from) * map.width + right;
    for (let column = first; column < end; column += 1) {
      data[to + row * width + column] += factor * map.data[source + column * stride];
    }
  }
}

/** Returns a map of twice the height and width, of which each pixel is the nearest one. */
export function enlarge({ data, channels, height, width }) {
  const made = new Float32Array(4 * data.length);
  for (let at = 0; at < made.length; at += 1) {
    const column = at % (2 * width);
    const row = Math.floor(at / (2 * width)) % (2 * height);
    const channel = Math.floor(at / (4 * width * height));
    made[at] = data[(channel * height + (row >> 1)) * width + (column >> 1)];
  }
  return { data: made, channels, height: 2 * height, width: 2 * width };
}

/** Returns a map with the channels of both. */
export function join(one, other) {
  const data = new Float32Array(one.data.length + other.data.length);
  data.set(one.data);
  data.set(other.data, one.data.length);
  return { ...one, data, channels: one.channels + other.channels };
}

/** Returns a map whose groups of channels have mean 0 and deviation 1, times the weights. */
export function groupNorm(map, { weight, bias }, groups, epsilon) {
  const data = map.data.slice();
  const size = data.length / groups;
  const pixels = map.height * map.width;
  for (let begin = 0; begin < data.length; begin += size) standardise(data, begin, begin + size, epsilon);
  for (let at = 0; at < data.length; at += 1) {
    const channel = Math.floor(at / pixels);
    data[at] = data[at] * weight.data[channel] + bias.data[channel];
  }
  return { ...map, data };
}

/** Returns tokens that each have mean 0 and deviation 1, times the weights. */
export function layerNorm(tokens, { weight, bias }) {
  const data = tokens.data.slice();
  const { count, width } = tokens;
  for (let token = 0; token < count; token += 1) {
    standardise(data, token * width, (token + 1) * width, 1e-5);
    for (let at = 0; at < width; at += 1) data[token * width + at] = data[token * width + at] * weight.data[at] + bias.data[at];
  }
  return { ...tokens, data };
}

function standardise(data, begin, end, epsilon) {
  let [sum, squares] = [0, 0];
  for (let at = begin; at < end; at += 1) sum += data[at];
  const mean = sum / (end - begin);
  for (let at = begin; at < end; at += 1) squares += (data[at] - mean) ** 2;
  const factor = 1 / Math.sqrt(squares / (end - begin) + epsilon);
  for (let at = begin; at < end; at += 1) data[at] = (data[at] - mean) * factor;
}

/** Returns tokens times a matrix. */
export function linear(tokens, { weight, bias }) {
  const [outputs, inputs] = weight.shape;
  const data = new Float32Array(tokens.count * outputs);
  for (let token = 0; token < tokens.count; token += 1) {
    for (let output = 0; output < outputs; output += 1) {
      let sum = bias ? bias.data[output] : 0;
      for (let input = 0; input < inputs; input += 1) {
        sum += tokens.data[token * inputs + input] * weight.data[output * inputs + input];
      }
      data[token * outputs + output] = sum;
    }
  }
  return { data, count: tokens.count, width: outputs };
}

/** Returns attention of some heads: for each query the mean of the values, weighted by how well the keys agree. */
export function attend(queries, keys, values, heads) {
  const { count, width } = queries;
  const size = width / heads;
  const data = new Float32Array(count * width);
  const weights = new Float64Array(keys.count);
  for (let query = 0; query < count; query += 1) {
    for (let begin = 0; begin < width; begin += size) {
      let total = 0;
      for (let key = 0; key < keys.count; key += 1) {
        let sum = 0;
        for (let at = begin; at < begin + size; at += 1) sum += queries.data[query * width + at] * keys.data[key * width + at];
        total += weights[key] = Math.exp(sum / Math.sqrt(size));
      }
      for (let key = 0; key < keys.count; key += 1) {
        const share = weights[key] / total;
        for (let at = begin; at < begin + size; at += 1) data[query * width + at] += share * values.data[key * width + at];
      }
    }
  }
  return { data, count, width };
}

/** Returns a map or tokens, each number changed by a function of it and its place. */
export const changed = (one, change) => ({ ...one, data: one.data.map(change) });

/** Returns the sum of two maps or tokens of one shape. */
export const plus = (one, other) => changed(one, (value, at) => value + other.data[at]);

/** Returns x·σ(x). */
export const silu = (one) => changed(one, (value) => value / (1 + Math.exp(-value)));

/** Returns the pixels of a map as tokens. */
export function toTokens({ data, channels, height, width }) {
  const count = height * width;
  return { data: data.map((_, at) => data[(at % channels) * count + Math.floor(at / channels)]), count, width: channels };
}

/** Returns tokens as the pixels of a map of a shape. */
export function toMap({ data, count, width }, shape) {
  return { ...shape, data: data.map((_, at) => data[(at % count) * width + Math.floor(at / count)]) };
}

/** Returns x·Φ(x) of a number; the error function is Abramowitz and Stegun's 7.1.26, within 1.5e-7. */
export function gelu(value) {
  const size = Math.abs(value) / Math.SQRT2;
  const t = 1 / (1 + 0.3275911 * size);
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  const erf = (1 - series * Math.exp(-size * size)) * Math.sign(value);
  return 0.5 * value * (1 + erf);
}
