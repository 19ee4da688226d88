// The UNet of the model that is shipped with hybridge, as diffusers' UNet2DConditionModel computes it.

import { attend, changed, convolve, enlarge, gelu, groupNorm, join, layerNorm, linear, plus, silu, toMap, toTokens } from './layers.js';

const GROUPS = 16;
const HEADS = 5;
const POOL_HEADS = 8;

/** Returns a function (latents, timestep, embeddings) → what the model predicts, a map like the latents.
 *
 * @param tensors the weights: name → {data, shape}
 */
export function makeUnet(tensors) {
  const of = (name) => {
    const found = { weight: tensors.get(`${name}.weight`), bias: tensors.get(`${name}.bias`) };
    if (!found.weight) throw new Error(`the denoiser has no ${name}`);
    return found;
  };
  const normed = (name, map) => groupNorm(map, of(name), GROUPS, 1e-5);

  /** Convolves twice; the time scales and shifts in between. */
  function resnet(name, map, time) {
    const scales = linear(silu(time), of(`${name}.time_emb_proj`)).data;
    const first = convolve(silu(normed(`${name}.norm1`, map)), of(`${name}.conv1`));
    const [channels, pixels] = [first.channels, first.height * first.width];
    const timed = changed(normed(`${name}.norm2`, first), (value, at) => {
      const channel = Math.floor(at / pixels);
      return value * (1 + scales[channel]) + scales[channels + channel];
    });
    const second = convolve(silu(timed), of(`${name}.conv2`));
    const isWider = tensors.has(`${name}.conv_shortcut.weight`);
    return plus(isWider ? convolve(map, of(`${name}.conv_shortcut`)) : map, second);
  }

  /** Attends to all pixels, then to the prompt. */
  function transformer(name, map, embeddings) {
    const block = `${name}.transformer_blocks.0`;
    const attention = (which, tokens, context) => {
      const part = (one) => of(`${block}.${which}.${one}`);
      const [queries, keys, values] = [linear(tokens, part('to_q')), linear(context, part('to_k')), linear(context, part('to_v'))];
      return linear(attend(queries, keys, values, HEADS), part('to_out.0'));
    };
    let tokens = linear(toTokens(groupNorm(map, of(`${name}.norm`), GROUPS, 1e-6)), of(`${name}.proj_in`));
    const own = layerNorm(tokens, of(`${block}.norm1`));
    tokens = plus(tokens, attention('attn1', own, own));
    tokens = plus(tokens, attention('attn2', layerNorm(tokens, of(`${block}.norm2`)), embeddings));
    tokens = plus(tokens, linear(gated(linear(layerNorm(tokens, of(`${block}.norm3`)), of(`${block}.ff.net.0.proj`))), of(`${block}.ff.net.2`)));
    return plus(map, toMap(linear(tokens, of(`${name}.proj_out`)), map));
  }

  /** Returns what the timestep and the whole prompt mean for every block, one token. */
  function timeOf(timestep, embeddings) {
    const waves = { data: sinusoids(timestep, of('time_embedding.linear_1').weight.shape[1]), count: 1 };
    const time = linear(silu(linear(waves, of('time_embedding.linear_1'))), of('time_embedding.linear_2'));
    const context = layerNorm(embeddings, of('add_embedding.norm1'));
    const place = tensors.get('add_embedding.pool.positional_embedding').data;
    const mean = { data: meanOf(context).map((value, at) => value + place[at]), count: 1, width: context.width };
    const all = { data: new Float32Array([...mean.data, ...context.data]), count: context.count + 1, width: context.width };
    const part = (one, tokens) => linear(tokens, of(`add_embedding.pool.${one}_proj`));
    const pooled = attend(part('q', mean), part('k', all), part('v', all), POOL_HEADS);
    return plus(time, layerNorm(linear(pooled, of('add_embedding.proj')), of('add_embedding.norm2')));
  }

  return (latents, timestep, embeddings) => {
    const time = timeOf(timestep, embeddings);
    const begun = convolve(latents, of('conv_in'));
    const upper = resnet('down_blocks.0.resnets.0', begun, time);
    const smaller = convolve(upper, of('down_blocks.0.downsamplers.0.conv'), 2);
    const lower = transformer('down_blocks.1.attentions.0', resnet('down_blocks.1.resnets.0', smaller, time), embeddings);
    let map = resnet('mid_block.resnets.0', lower, time);
    map = resnet('mid_block.resnets.1', transformer('mid_block.attentions.0', map, embeddings), time);
    for (const [index, beside] of [lower, smaller].entries()) {
      map = resnet(`up_blocks.0.resnets.${index}`, join(map, beside), time);
      map = transformer(`up_blocks.0.attentions.${index}`, map, embeddings);
    }
    map = convolve(enlarge(map), of('up_blocks.0.upsamplers.0.conv'));
    for (const [index, beside] of [upper, begun].entries()) map = resnet(`up_blocks.1.resnets.${index}`, join(map, beside), time);
    return convolve(silu(normed('conv_norm_out', map)), of('conv_out'));
  };
}

/** Returns the first half of tokens, times the GELU of the second. */
function gated({ data, count, width }) {
  const half = width / 2;
  const made = new Float32Array(count * half);
  for (let at = 0; at < made.length; at += 1) {
    const from = Math.floor(at / half) * width + (at % half);
    made[at] = data[from] * gelu(data[from + half]);
  }
  return { data: made, count, width: half };
}

/** Returns cosines and then sines of a timestep at falling frequencies. */
function sinusoids(timestep, size) {
  const half = size / 2;
  const angle = (at) => timestep * Math.exp((-Math.log(10000) * (at % half)) / half);
  return Float32Array.from({ length: size }, (_, at) => (at < half ? Math.cos(angle(at)) : Math.sin(angle(at))));
}

function meanOf({ data, count, width }) {
  const mean = new Float32Array(width);
  for (let at = 0; at < data.length; at += 1) mean[at % width] += data[at] / count;
  return mean;
}
