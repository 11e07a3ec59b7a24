"use strict";
// What the file holds, its arrays unpacked: runs, the keys that are swept, and the cells of runs that differ by their seed alone.

const content = unpacked(JSON.parse(document.getElementById("content").textContent));
const { runs, keys } = content;
const cells = cellsOf();
const downAxis = axisOf(content.down), acrossAxis = axisOf(content.across);

function unpacked(packed) {
  const arrays = { float32: Float32Array, uint8: Uint8Array };
  const array = ({ kind, base64 }) => new arrays[kind](Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)).buffer);
  const grids = packed.grids.map(array);
  const curve = (found) => ({ ...found, steps: grids[found.grid], values: array(found.values) });
  const signal = (found) => ({ ...found, steps: grids[found.grid], edges: array(found.edges), heights: array(found.heights) });
  const map = (all, change) => Object.fromEntries(Object.entries(all).map(([name, found]) => [name, change(found)]));
  const runs = packed.runs.map((run, number) => ({
    ...run, number, curves: map(run.curves, curve), norms: curve(run.norms), distributions: map(run.distributions, signal), theory: run.theory && array(run.theory) }));
  return { ...packed, runs };
}

// What differs between runs, or the one value that all have.
function axisOf(key) {
  const place = keys.findIndex((each) => each.key === key);
  return place < 0 ? { key, word: key.split(".").pop(), values: [content.config[key] ?? ""], place } : { ...keys[place], place };
}

const valueOf = (run, axis) => (axis.place < 0 ? axis.values[0] : axis.values[run.place[axis.place]]);

// The runs that differ by their seed alone.
function cellsOf() {
  const without = (run) => run.place.filter((_, place) => keys[place].key !== content.seed).join();
  return d3.groups(runs, without).map(([, runs]) => {
    const values = runs.map((run) => run.value).filter((value) => value !== null);
    const trained = runs.filter((run) => run.outcome === "trained").length;
    const name = keys.filter((key) => key.key !== content.seed).map((key) => `${key.word} ${key.values[runs[0].place[keys.indexOf(key)]]}`).join(", ");
    return { runs, name: name || runs[0].name, trained, mean: values.length ? d3.mean(values) : null, whole: values.length === runs.length };
  });
}

// The smaller, the better; a run that diverged or was stopped has no value.
const cost = (value) => (value === null ? Infinity : content.isLoss ? value : -value);
const bestOf = (alike) => d3.least(alike, (run) => cost(run.value)) ?? alike[0];
// Why a cell has no value.
const missing = (cell) => (cell.runs.some((run) => run.outcome === "stopped") ? "stopped" : "diverged");
const nearest = (steps, step) => Math.max(0, d3.bisectRight(steps, step) - 1);
