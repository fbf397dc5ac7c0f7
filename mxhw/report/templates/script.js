"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const state = { layer: 0, measure: data.measures[0] || null, box: null };
  const byName = new Map(data.nodes.map((node, index) => [node.name, index]));
  const number = (value) => Math.round(value).toLocaleString("en-US");
  const percent = (value) => (100 * value).toFixed(value < 0.001 ? 3 : 2) + "\u00a0%";
  const element = (tag, text, name) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (name) made.className = name;
    return made;
  };
  const index = (box) => data.boxes[box][Math.min(state.layer, data.boxes[box].length - 1)];
  const shape = (node) => (node.shape.length === 1 && node.shape[0] === 1 ? "" : " · " + node.shape.join(" × "));
  const measures = {
    cycles: { of: (node) => node.multiply === null ? null : node.multiply + node.wait, text: number },
    error: { of: (node) => node.error, text: percent },
    added: { of: (node) => node.added, text: percent },
  };
  const largest = {};
  for (const key of data.measures) largest[key] = Math.max(...data.nodes.map((node) => measures[key].of(node) || 0)) || 1;

  function heat() {
    for (const group of document.querySelectorAll("#graph .node")) {
      const node = data.nodes[index(+group.dataset.box)];
      const value = state.measure ? measures[state.measure].of(node) : null;
      group.querySelector(".value").textContent = value === null ? "" : measures[state.measure].text(value);
      group.querySelector(".heat").setAttribute("width", value === null ? 0 : (146 * value) / largest[state.measure]);
    }
  }

  function resources(list, unit) {
    const estimated = data.units[unit] && data.units[unit].estimated;
    const measured = data.units[unit] && data.units[unit].measured;
    if (!estimated && !measured) return;
    const titles = { luts: "lookup tables", flip_flops: "flip-flops", block_rams: "block RAMs", multipliers: "multipliers" };
    const describe = (part) => Object.keys(titles).filter((key) => part[key]).map((key) => number(part[key]) + " " + titles[key]).join(", ");
    list.append(element("dt", data.titles[unit] || unit));
    const cell = element("dd", measured ? describe(measured) : "");
    if (estimated) cell.append(element("span", "estimated " + describe(estimated), "sub"));
    list.append(cell);
  }

  function show(box) {
    state.box = box;
    const node = data.nodes[index(box)];
    const panel = document.getElementById("panel");
    panel.replaceChildren();
    panel.dataset.node = node.name;
    const close = element("button", "×", "close");
    close.type = "button";
    close.setAttribute("aria-label", "Close");
    close.addEventListener("click", clear);
    panel.append(close);
    panel.append(element("h3", node.operator));
    panel.append(element("p", node.origin ? node.origin + " · " + node.name : node.name, "origin"));
    const list = element("dl");
    const row = (title, text, sub) => {
      list.append(element("dt", title));
      const cell = element("dd", text);
      if (sub) cell.append(element("span", sub, "sub"));
      list.append(cell);
    };
    row("source", node.source || "unknown");
    if (node.code) list.lastChild.append(element("code", node.code, "code"));
    row("value", node.format + shape(node));
    const read = node.inputs.filter((name) => byName.has(name)).map((name) => { const from = data.nodes[byName.get(name)]; return name + " (" + from.format + ")"; });
    const rest = node.inputs.filter((name) => !byName.has(name));
    row("reads", [...read, ...rest].join(", ") || "nothing");
    if (node.weight) row("weights", node.weight.format + " · " + node.weight.shape.join(" × "));
    if (node.multiply !== null) {
      const total = node.multiply + node.wait;
      row("cycles", number(total) + " (" + ((100 * total) / data.cycles).toFixed(1) + "\u00a0% of the token)", number(node.multiply) + " multiplying, " + number(node.wait) + " waited for");
    }
    if (node.error !== null) {
      if (node.operator === "argmax") row("differs", percent(node.error) + " of the tokens");
      else row("error", percent(node.error) + " against float", (node.added === null ? "stores only" : "adds " + percent(node.added) + " itself") + ", largest element " + percent(node.largest));
    }
    for (const unit of node.units) resources(list, unit);
    panel.append(list);
    if (node.units.length && data.boxes[box].length > 1) panel.append(element("p", "The units are shared by all layers.", "note"));
    for (const group of document.querySelectorAll("#graph .node")) group.classList.toggle("chosen", +group.dataset.box === box);
    for (const wire of document.querySelectorAll("#graph .wire")) wire.classList.toggle("on", +wire.dataset.from === box || +wire.dataset.to === box);
  }

  function clear() {
    state.box = null;
    const panel = document.getElementById("panel");
    panel.replaceChildren();
    delete panel.dataset.node;
    for (const marked of document.querySelectorAll("#graph .chosen, #graph .on")) marked.classList.remove("chosen", "on");
  }

  function press(buttons, chosen) {
    for (const button of buttons) button.setAttribute("aria-pressed", String(button === chosen));
  }

  function setLayer(layer) {
    state.layer = layer;
    const buttons = document.querySelectorAll("#layer-choice button");
    press(buttons, [...buttons].find((button) => +button.dataset.layer === layer));
    const title = document.getElementById("layer-number");
    if (title) title.textContent = layer + 1;
    heat();
    if (state.box !== null) show(state.box);
  }

  function choose(name) {
    const number = byName.get(name);
    if (number === undefined) return;
    for (const [box, members] of Object.entries(data.boxes)) {
      const layer = members.indexOf(number);
      if (layer < 0) continue;
      if (members.length > 1) setLayer(layer);
      show(+box);
      document.querySelector(`#graph .node[data-box="${box}"]`).scrollIntoView({ block: "center", behavior: "smooth" });
    }
  }

  for (const group of document.querySelectorAll("#graph .node")) {
    const act = () => show(+group.dataset.box);
    group.addEventListener("click", act);
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
    });
  }
  for (const button of document.querySelectorAll("#layer-choice button")) button.addEventListener("click", () => setLayer(+button.dataset.layer));
  for (const button of document.querySelectorAll("#measure-choice button")) {
    button.addEventListener("click", () => {
      state.measure = button.dataset.measure;
      press(document.querySelectorAll("#measure-choice button"), button);
      heat();
    });
  }
  for (const shape of document.querySelectorAll("#timeline .span, .err")) shape.addEventListener("click", () => choose(shape.dataset.node));

  const timeline = document.getElementById("timeline");
  for (const button of document.querySelectorAll("#zoom-choice button")) {
    button.addEventListener("click", () => {
      const start = +button.dataset.start, end = +button.dataset.end;
      press(document.querySelectorAll("#zoom-choice button"), button);
      const view = timeline.viewBox.baseVal;
      timeline.setAttribute("viewBox", `${start} 0 ${end - start} ${view.height}`);
      document.getElementById("axis").replaceChildren(...[start, (start + end) / 2, end].map((value, place) => element("span", number(value) + (place === 2 ? " cycles" : ""))));
    });
  }

  const floor = document.getElementById("floor");
  if (floor) {
    const pick = (unit) => {
      floor.classList.toggle("pick", unit !== null);
      for (const path of floor.querySelectorAll("path")) path.classList.toggle("on", path.dataset.unit === unit);
    };
    for (const item of document.querySelectorAll("#floor-key li, #floor path")) {
      item.addEventListener("mouseenter", () => pick(item.dataset.unit));
      item.addEventListener("mouseleave", () => pick(null));
    }
  }
  addEventListener("beforeprint", () => { for (const part of document.querySelectorAll("details")) part.open = true; });
  heat();
  const first = document.querySelector("#graph .node");
  if (first && matchMedia("(min-width: 861px)").matches) show(+first.dataset.box);
})();
