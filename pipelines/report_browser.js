// The selection browser: filters, a page of crops with joints over them, and one of them closer.
(() => {
  "use strict";
  const at = (id) => document.getElementById(id);
  if (!at("browser-data")) return;
  const data = JSON.parse(at("browser-data").textContent);
  const EACH = 24; // crops at once
  let found = [], first = 0, closer = 0;

  const make = (tag, fields = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...inside);
    return element;
  };
  const options = (select, names) => select.replaceChildren(...names.map(([value, text]) => new Option(text, value)));
  const round = () => data.rounds[at("round").value];
  const criterion = () => round().criteria[at("criterion").value];
  const scoreOf = (row) => row.scores[at("criterion").value];
  const shown = (value, { unit }) => value === null ? "no score" : `${Number(value.toPrecision(3))}${unit && ` ${unit}`}`;

  at("round").addEventListener("input", enter);
  at("criterion").addEventListener("input", () => { at("low").value = at("high").value = ""; describe(); filter(); });
  for (const id of ["low", "high", "kept", "reason", "order"]) at(id).addEventListener("input", filter);
  at("browser").addEventListener("reset", () => setTimeout(() => { at("round").value = data.rounds.length - 1; enter(); }));
  at("before").addEventListener("click", () => turn(first - EACH));
  at("after").addEventListener("click", () => turn(first + EACH));
  at("former").addEventListener("click", () => open(closer - 1));
  at("next").addEventListener("click", () => open(closer + 1));
  at("close").addEventListener("click", () => at("closer").close());
  at("closer").addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) open(closer + step);
  });
  at("closer").addEventListener("close", () => at("crops").children[closer - first]?.focus());
  options(at("round"), data.rounds.map((r, i) => [i, r.round]));
  at("round").value = data.rounds.length - 1;
  enter();

  // Another round: its criteria and reasons, its own criterion first.
  function enter() {
    const chosen = round();
    options(at("criterion"), chosen.criteria.map((c, i) => [i, c.name + (i ? "" : " (chose this round)")]));
    options(at("reason"), [["", "any"], ...chosen.reasons.map((text, i) => [i, text])]);
    at("low").value = at("high").value = "";
    describe();
    filter();
  }

  function describe() {
    const all = round().rows.map(scoreOf).filter((s) => s !== null);
    const ends = all.length ? [Math.min(...all), Math.max(...all)] : ["", ""];
    at("low").placeholder = ends[0];
    at("high").placeholder = ends[1];
    at("means").innerHTML = criterion().means && `<b>${criterion().name}</b>: ${criterion().means}.`;
  }

  function filter() {
    const low = at("low").value === "" ? -Infinity : Number(at("low").value);
    const high = at("high").value === "" ? Infinity : Number(at("high").value);
    const ranged = low > -Infinity || high < Infinity;
    const { rows, kept } = round();
    found = rows.filter((row) => {
      const score = scoreOf(row);
      return (at("kept").value === "" || row.kept === (at("kept").value === "1"))
        && (at("reason").value === "" || row.kind === Number(at("reason").value))
        && (!ranged || (score !== null && score >= low && score <= high));
    });
    const sign = criterion().high ? -1 : 1;
    const cost = (row) => scoreOf(row) === null ? Infinity : sign * scoreOf(row);
    const own = at("criterion").value === "0"; // its ranks say more than its scores: quotas, ties
    const best = (a, b) => (own ? 0 : cost(a) - cost(b)) || a.rank - b.rank;
    const near = (row) => Math.abs(row.rank - kept - 0.5);
    const order = { best, worst: (a, b) => best(b, a), cut: (a, b) => near(a) - near(b) || a.rank - b.rank };
    found.sort(order[at("order").value]);
    turn(0);
  }

  function turn(place) {
    first = Math.max(0, place);
    const page = found.slice(first, first + EACH);
    at("crops").replaceChildren(...page.map(cell));
    const range = page.length ? `${first + 1}\u2013${first + page.length} of ` : "";
    at("found").value = `${range}${found.length} animals`;
    at("before").disabled = first === 0;
    at("after").disabled = first + EACH >= found.length;
  }

  function cell(row, i) {
    const tag = row.kept ? "kept" : "rejected";
    const animal = data.animals[row.animal];
    const text = make("span", { className: "said" }, make("b", { textContent: shown(scoreOf(row), criterion()) }), " ",
      make("span", { className: "tag", textContent: tag }), make("br"), row.reason.replace("<=", "\u2264"));
    const button = make("button", { type: "button", className: row.kept ? "kept" : "lost", title: animal.id }, draw(row), text);
    button.addEventListener("click", () => { open(first + i); });
    return button;
  }

  function open(place) {
    if (place < 0 || place >= found.length) return;
    closer = place;
    if (place < first || place >= first + EACH) turn(EACH * Math.floor(place / EACH));
    const row = found[place], animal = data.animals[row.animal];
    at("large").replaceChildren(draw(row));
    at("large").className = row.kept ? "kept" : "lost";
    const line = (name, value) => make("tr", {}, make("td", { textContent: name }), make("td", { textContent: value }));
    at("details").replaceChildren(
      line("animal", animal.id), line("round", round().round), line("reason", row.reason.replace("<=", "\u2264")),
      ...round().criteria.map((c, i) => line(c.name, shown(row.scores[i], c))));
    const author = [animal.author && `by ${animal.author}`, animal.license].filter(Boolean).join(", ");
    at("credit").replaceChildren(`Photo ${animal.photo}${author && ` ${author}`}`);
    if (/^https?:/.test(animal.page_url ?? "")) {
      at("credit").append(", ", make("a", { href: animal.page_url, textContent: "its page", rel: "noreferrer" }));
    }
    at("former").disabled = place === 0;
    at("next").disabled = place === found.length - 1;
    if (!at("closer").open) at("closer").showModal();
  }

  function draw(row) {
    const [low, side] = data.view;
    const image = data.animals[row.animal].image;
    const svg = [`<svg class="crop" viewBox="${low} ${low} ${side} ${side}">`];
    if (image) svg.push(`<image href="${image}" width="100" height="100" preserveAspectRatio="none"/>`);
    svg.push(pose(row.three, 2, "three"), pose(row.two, 3, "two"), "</svg>");
    const holder = make("template", { innerHTML: svg.join("") });
    return holder.content.firstChild;
  }

  // Joints and bones of flat numbers, as pipelines/report_crops.py draws them.
  function pose(flat, width, kind) {
    if (!flat) return "";
    const joints = [];
    for (let i = 0; i < flat.length; i += width) {
      const [x, y, weight = 100] = flat.slice(i, i + width);
      const known = x !== null && y !== null && weight !== null;
      joints.push({ at: `${x / 10} ${y / 10}`, known, weight, sure: known && weight >= 100 * data.sure });
    }
    const bones = data.edges.filter(([a, b]) => joints[a]?.sure && joints[b]?.sure);
    const lines = bones.map(([a, b]) => `M${joints[a].at}L${joints[b].at}`).join("");
    const dots = (some) => some.map((j) => `M${j.at}h0`).join("");
    const large = dots(joints.filter((j) => j.sure));
    const small = dots(joints.filter((j) => j.known && !j.sure && j.weight > 0));
    const paths = [["rim", lines], ["bone", lines], ["rim dot", large], ["dot", large], ["faint", small]];
    return `<g class="${kind}">${paths.map(([c, d]) => d && `<path class="${c}" d="${d}"/>`).join("")}</g>`;
  }
})();
