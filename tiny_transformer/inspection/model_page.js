// Draws what the page on a model has chosen: one token's guesses, one head's weights as a picture and as lines.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("model-data").textContent);
  const T = data.tokens.length;
  const shown = (text) => text.replaceAll("\n", "\u23ce").replaceAll("\t", "\u21e5") || "\u2423";
  const percent = (p) => `${(100 * p).toFixed(2)}%`;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const weights = {};
  for (const [block, text] of Object.entries(data.attention)) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    weights[block] = new Float32Array(bytes.buffer);
  }
  // How much token `row` looks at token `column` (never at a later one).
  const weight = (block, head, row, column) => weights[block][(head * T * (T + 1)) / 2 + (row * (row + 1)) / 2 + column];
  const chosen = { token: T - 1, block: null, head: 0 };

  function element(name, text, parent, attributes = {}, space = null) {
    const made = space ? document.createElementNS(space, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== null) made.textContent = text;
    parent.append(made);
    return made;
  }

  function paint(canvas, block, head, cell) {
    canvas.width = canvas.height = T * cell;
    const context = canvas.getContext("2d");
    context.fillStyle = css("--train");
    for (let row = 0; row < T; row++) {
      for (let column = 0; column <= row; column++) {
        context.globalAlpha = Math.min(1, Math.sqrt(weight(block, head, row, column)));
        context.fillRect(column * cell, row * cell, cell, cell);
      }
    }
    context.globalAlpha = 1;
  }

  function drawGuesses() {
    const t = chosen.token;
    const place = document.getElementById("guesses");
    place.replaceChildren();
    const came = t + 1 < T ? data.tokens[t + 1] : null;
    const words = came === null ? "after the last token" : `after “${shown(data.tokens[t])}” came “${shown(came)}”, with ${percent(data.probability[t + 1])}`;
    element("h3", words, place);
    const body = element("tbody", null, element("table", null, place, { class: "rows guesses" }));
    for (const [text, p] of data.guesses[t]) {
      const row = element("tr", null, body, text === came ? { class: "came" } : {});
      element("th", shown(text), row, { scope: "row" });
      element("td", percent(p), row);
      const bar = element("td", null, row, { class: "bar" });
      element("span", "", bar).style.width = `${100 * p}%`;
    }
    for (const button of document.querySelectorAll(".token")) button.setAttribute("aria-pressed", button.dataset.token === String(t));
  }

  // What the token that came costs more without each head and each block.
  function drawWithout() {
    const place = document.getElementById("without"), t = chosen.token;
    place.replaceChildren();
    element("h3", "and what that guess needs", place);
    if (t + 1 === T) { element("p", "After the last token nothing came. Choose an earlier one.", place, { class: "note" }); return; }
    element("p", `“${shown(data.tokens[t + 1])}” had ${percent(data.probability[t + 1])}. Nats more that it costs when a head gives zeros, or a block gives on what it gets:`, place, { class: "note" });
    const costs = data.withoutBlock.map((block, i) => [...(data.withoutHead[i] || []).map((head) => head[t]), block[t]]);
    const most = Math.max(...costs.map((row) => row.length)) - 1, top = Math.max(...costs.flat().map(Math.abs)) || 1;
    const table = element("table", null, element("div", null, place, { class: "scroll", tabindex: 0 }), { class: "heat" });
    const heads = element("tr", null, element("thead", null, table));
    for (const name of ["head", ...Array(most).keys(), "block"]) element("th", String(name), heads, { scope: "col" });
    const body = element("tbody", null, table);
    costs.forEach((row, i) => {
      const line = element("tr", null, body);
      element("th", `block ${i}`, line, { scope: "row" });
      for (let head = 0; head < most; head++) drawCost(line, head < row.length - 1 ? row[head] : null, top);
      drawCost(line, row[row.length - 1], top);
    });
  }

  function drawCost(line, cost, top) {
    if (cost === null) { element("td", "", line, { class: "none" }); return; }
    element("td", (cost < 0 ? "\u2212" : "+") + Math.abs(cost).toFixed(2), line, { "data-value": cost, style: `--v:${Math.abs(cost) / top}` });
  }

  function drawHead() {
    if (chosen.block === null) return;
    const { block, head, token } = chosen;
    const matrix = document.getElementById("matrix");
    paint(matrix, block, head, Math.max(2, Math.floor(576 / T)));
    const context = matrix.getContext("2d");
    const cell = matrix.width / T;
    context.strokeStyle = css("--ink");
    context.strokeRect(0.5, token * cell + 0.5, (token + 1) * cell - 1, cell - 1);
    document.getElementById("head-title").textContent = `block ${block}, head ${head}`;
    matrix.setAttribute("aria-label", `attention of block ${block}, head ${head}: a row for each token that reads`);
    drawLines();
    for (const button of document.querySelectorAll(".token")) {
      const t = Number(button.dataset.token);
      button.style.setProperty("--look", t > token ? 0 : weight(block, head, token, t));
    }
    tell(token, strongest(token));
    for (const thumb of document.querySelectorAll(".thumb")) {
      thumb.setAttribute("aria-pressed", thumb.dataset.block === String(block) && thumb.dataset.head === String(head));
    }
  }

  function strongest(row) {
    let best = 0;
    for (let column = 1; column <= row; column++) if (weight(chosen.block, chosen.head, row, column) > weight(chosen.block, chosen.head, row, best)) best = column;
    return best;
  }

  function tell(row, column) {
    const place = document.getElementById("cell");
    if (column > row) { place.textContent = "nobody looks ahead"; return; }
    place.textContent = `“${shown(data.tokens[row])}” (${row}) looks at “${shown(data.tokens[column])}” (${column}) with ${percent(weight(chosen.block, chosen.head, row, column))}`;
  }

  function drawLines() {
    const svg = document.getElementById("arcs"), space = "http://www.w3.org/2000/svg", step = 18, width = 320;
    svg.replaceChildren();
    svg.setAttribute("width", width);
    svg.setAttribute("height", T * step + 8);
    svg.setAttribute("aria-label", `from token ${chosen.token} to what it looks at`);
    const y = (t) => t * step + 14;
    for (let column = 0; column <= chosen.token; column++) {
      const share = weight(chosen.block, chosen.head, chosen.token, column);
      element("line", null, svg, { x1: 112, x2: 208, y1: y(chosen.token) - 4, y2: y(column) - 4, "stroke-opacity": share, "stroke-width": 1 + 3 * share }, space);
    }
    for (let t = 0; t < T; t++) {
      element("text", shown(data.tokens[t]).slice(0, 14), svg, { x: 106, y: y(t), "text-anchor": "end", "font-weight": t === chosen.token ? 700 : 400 }, space);
      element("text", shown(data.tokens[t]).slice(0, 14), svg, { x: 214, y: y(t) }, space);
    }
    // Of a long text both ends of the strongest line are in view, or else the token that looks.
    const box = svg.parentElement, ends = [y(strongest(chosen.token)), y(chosen.token)];
    box.scrollTop = ends[1] - ends[0] < box.clientHeight ? (ends[0] + ends[1] - box.clientHeight) / 2 : ends[1] - box.clientHeight + step;
  }

  function choose(change) {
    Object.assign(chosen, change);
    drawGuesses();
    drawHead();
    drawWithout();
  }

  for (const button of document.querySelectorAll(".token")) button.addEventListener("click", () => choose({ token: Number(button.dataset.token) }));
  const thumbs = [...document.querySelectorAll(".thumb")];
  function drawThumbs() {
    for (const thumb of thumbs) paint(thumb.querySelector("canvas"), thumb.dataset.block, Number(thumb.dataset.head), 1);
  }
  for (const thumb of thumbs) thumb.addEventListener("click", () => choose({ block: thumb.dataset.block, head: Number(thumb.dataset.head) }));
  for (const button of document.querySelectorAll(".show")) {
    button.addEventListener("click", () => {
      choose({ block: button.dataset.block, head: Number(button.dataset.head), token: Number(button.dataset.token) });
      document.getElementById("attention").scrollIntoView();
    });
  }
  const matrix = document.getElementById("matrix");
  if (matrix) {
    matrix.addEventListener("pointermove", (event) => {
      const box = matrix.getBoundingClientRect();
      const at = (value, size) => Math.max(0, Math.min(T - 1, Math.floor((T * value) / size)));
      tell(at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width));
    });
    matrix.addEventListener("click", (event) => {
      const box = matrix.getBoundingClientRect();
      choose({ token: Math.max(0, Math.min(T - 1, Math.floor((T * (event.clientY - box.top)) / box.height))) });
    });
    matrix.addEventListener("keydown", (event) => {
      const move = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (move === undefined) return;
      event.preventDefault();
      choose({ token: Math.max(0, Math.min(T - 1, chosen.token + move)) });
    });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawThumbs(); drawHead(); });
  drawThumbs();
  if (data.start) choose({ block: String(data.start.block), head: data.start.head, token: data.start.token });
  else choose(thumbs.length ? { block: thumbs[thumbs.length - 1].dataset.block, head: 0 } : {});
})();
